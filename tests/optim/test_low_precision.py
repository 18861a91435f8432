"""What state_dtype, master_weights, stochastic_rounding and ema_dtype promise to users."""

import copy
import io

import pytest
import torch
from torch import nn

from spectramind_fused import FusedAdamW, FusedSGD
from spectramind_fused.optim import OPTIMIZERS, unfused
from tests.asserts import assert_equal
from tests.inputs import clones, make_grads, set_grads
from tests.oracle import CLASSES

LOW = {"state_dtype": "int8", "stochastic_rounding": True, "low_precision_min_size": 0}
SPLIT = {"master_weights": "split"}
STORED = [
    {"state_dtype": "bfloat16", "stochastic_rounding": True},
    LOW,
    SPLIT,
    {**SPLIT, "state_dtype": "int8", "low_precision_min_size": 0},
    {"master_weights": "float32", "ema_decay": 0.9, "ema_dtype": "bfloat16"},
]
BACKENDS = ["cpu", "eager"]


def params(dtype=torch.bfloat16):
    torch.manual_seed(0)
    return [torch.randn(shape).to(dtype).requires_grad_() for shape in [(70, 90), (5000,), (7,)]]


def train(optimizer, held, steps, seed=0):
    for step in range(steps):
        torch.manual_seed(seed + step)
        set_grads(held, make_grads(held))
        optimizer.step()


def states(optimizer, held):
    return [v for p in held for v in optimizer.state[p].values() if torch.is_tensor(v)]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", ["AdamW", "SGD", "Lion", "Adadelta"])
def test_a_split_master_is_exactly_a_float32_parameter(kind, backend):
    """The same 16-bit gradients, widened, step float32 parameters to the same bits."""
    options = {"lr": 1e-3, "weight_decay": 0.1}
    options |= {"momentum": 0.9} if kind == "SGD" else {}
    held = params()
    wide = [p.detach().float().requires_grad_() for p in held]
    ours = CLASSES[kind][0](held, backend=backend, **SPLIT, **options)
    single = CLASSES[kind][0](wide, backend=backend, **options)
    for step in range(100):
        torch.manual_seed(step)
        grads = make_grads(held)
        set_grads(held, grads)
        set_grads(wide, [g.float() for g in grads])
        ours.step()
        single.step()
    full = ours.full_precision_state_dict()["state"]
    assert_equal([full[i]["master_weights"] for i in range(3)], wide)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("master", ["split", torch.float32])
@pytest.mark.parametrize("how", ["copy", "data", "load", "new memory"])
def test_a_weight_that_someone_else_wrote_counts_as_it_is(how, master, backend):
    held = params()
    optimizer = FusedAdamW(held, lr=1e-3, backend=backend, master_weights=master)
    train(optimizer, held, 3)
    loaded = torch.randn(70, 90).bfloat16()
    if how == "copy":
        with torch.no_grad():
            held[0].copy_(loaded)
    elif how == "data":
        held[0].data.copy_(loaded)
    elif how == "load":
        layer = nn.Linear(90, 70, bias=False)
        layer.weight = nn.Parameter(held[0].data)
        layer.load_state_dict({"weight": loaded})
    else:
        held[0].data = loaded.clone()
    fresh = [loaded.clone().requires_grad_(), *clones(held[1:])]
    twin = FusedAdamW(fresh, lr=1e-3, backend=backend, master_weights=master)
    twin.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for name in ("master_remainder", "master_weights", "master_checksums"):
        twin.state[fresh[0]].pop(name, None)  # what it would be without
    train(optimizer, held, 2, seed=9)
    train(twin, fresh, 2, seed=9)
    assert_equal(held, fresh)


def test_averages_in_place_leave_the_master_as_it_is():
    held, other = params(), params()
    pairs = [
        (FusedAdamW(p, lr=1e-3, ema_decay=0.9, backend="cpu", **SPLIT), p) for p in (held, other)
    ]
    for optimizer, p in pairs:
        train(optimizer, p, 3)
    with pairs[0][0].ema_weights():
        pass
    for optimizer, p in pairs:
        train(optimizer, p, 3, seed=9)
    assert_equal(states(pairs[0][0], held), states(pairs[1][0], other))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("options", STORED, ids=str)
def test_a_run_goes_on_from_a_file_as_if_unbroken(options, backend):
    kind = {"backend": backend, "lr": 1e-2, "seed": 3, **options}
    whole, held = params(), params()
    unbroken, first = FusedAdamW(whole, **kind), FusedAdamW(held, **kind)
    train(unbroken, whole, 3)
    train(first, held, 3)
    file = io.BytesIO()
    torch.save([first.state_dict(), held], file)
    file.seek(0)
    saved, again = torch.load(file, weights_only=True)
    again = [p.detach().requires_grad_() for p in again]
    second = FusedAdamW(again, **kind)
    second.load_state_dict(saved)
    train(unbroken, whole, 3, seed=9)
    train(second, again, 3, seed=9)
    assert_equal(again, whole)
    assert_equal(states(second, again), states(unbroken, whole))


@pytest.mark.parametrize("options", STORED, ids=str)
def test_it_can_be_switched_off_at_any_checkpoint(options):
    """`full_precision_state_dict` is torch's; and torch's goes into any storage."""
    held = params()
    ours = FusedAdamW(held, lr=1e-2, **options)
    train(ours, held, 3)
    full = ours.full_precision_state_dict()
    for entry in full["state"].values():
        of_elements = [v for k, v in entry.items() if torch.is_tensor(v) and k != "step"]
        assert {v.dtype for v in of_elements} == {torch.float32}
    wide = [p.detach().float().requires_grad_() for p in held]
    theirs = torch.optim.AdamW(wide, lr=1.0)
    theirs.load_state_dict(full)
    train(theirs, wide, 2)
    assert theirs.param_groups[0]["lr"] == 1e-2

    back = params()
    again = FusedAdamW(back, lr=1e-2, **options)
    again.load_state_dict(theirs.state_dict())
    train(again, back, 1)
    assert again.state[back[0]].keys() == ours.state[held[0]].keys()


def test_torchs_class_does_not_take_codes_for_values():
    held = params(torch.float32)
    ours = FusedAdamW(held, **LOW)
    train(ours, held, 2)
    theirs = torch.optim.AdamW(clones(held))
    theirs.load_state_dict(ours.state_dict())
    set_grads(theirs.param_groups[0]["params"], make_grads(held))
    with pytest.raises(KeyError, match="exp_avg"):
        theirs.step()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("before", [{}, *STORED[:4]], ids=str)
@pytest.mark.parametrize("after", [{}, *STORED[:4]], ids=str)
def test_the_live_options_say_in_what_a_checkpoint_goes_on(before, after, backend):
    """And what is only converted stays what it was, within what the new storage can tell."""
    held = params()
    first = FusedAdamW(held, lr=1e-3, backend=backend, **before)
    train(first, held, 3)
    again = clones(held)
    second = FusedAdamW(again, lr=1e-3, backend=backend, **after)
    second.load_state_dict(first.state_dict())
    fresh = params()
    third = FusedAdamW(fresh, lr=1e-3, backend=backend, **after)
    train(third, fresh, 1)
    train(first, held, 1, seed=9)
    train(second, again, 1, seed=9)
    assert second.state[again[0]].keys() == third.state[fresh[0]].keys()
    for p, q in zip(again, held, strict=True):
        torch.testing.assert_close(p.float(), q.float(), rtol=2**-7, atol=1e-3)


def test_options_may_change_between_steps():
    held = params(torch.float32)
    optimizer = FusedAdamW(held, backend="cpu")
    train(optimizer, held, 2)
    optimizer.param_groups[0]["spectramind_state_dtype"] = torch.bfloat16
    train(optimizer, held, 2)
    assert optimizer.state[held[0]]["exp_avg"].dtype == torch.bfloat16
    assert optimizer.state[held[2]]["exp_avg"].dtype == torch.float32  # a small one
    del optimizer.param_groups[0]["spectramind_state_dtype"]
    optimizer.param_groups[0]["spectramind_state_dtype"] = "int8"
    train(optimizer, held, 2)
    assert optimizer.state[held[0]]["exp_avg_codes"].dtype == torch.int8
    optimizer.param_groups[0]["spectramind_state_dtype"] = "float32"
    train(optimizer, held, 1)
    assert optimizer.state[held[0]]["exp_avg"].dtype == torch.float32
    assert "exp_avg_codes" not in optimizer.state[held[0]]


@pytest.mark.parametrize("backend", BACKENDS)
def test_groups_may_differ(backend):
    a, b, c = params()
    optimizer = FusedAdamW(
        [
            {"params": [a], "state_dtype": "int8"},
            {"params": [b], "master_weights": "split"},
            {"params": [c]},
        ],
        backend=backend,
    )
    train(optimizer, [a, b, c], 2)
    assert optimizer.state[a].keys() >= {"exp_avg_codes", "exp_avg_sq_scales"}
    assert optimizer.state[b].keys() >= {"exp_avg", "master_remainder"}
    assert optimizer.state[b]["exp_avg"].dtype == torch.float32
    assert optimizer.state[c]["exp_avg"].dtype == torch.bfloat16
    assert not optimizer.state[c].keys() & {"master_remainder", "exp_avg_codes"}


def test_the_seed_decides_the_bits_and_nothing_else_does():
    runs = {}
    for seed, threads in [(0, 1), (0, 2), (1, 2)]:
        torch.set_num_threads(threads)
        held = params()
        optimizer = FusedAdamW(held, lr=1e-3, backend="cpu", seed=seed, **STORED[0])
        torch.manual_seed(seed + threads)  # torch's own generator is not asked
        train(optimizer, held, 2)
        runs[seed, threads] = torch.cat([p.detach().view(-1) for p in held])
    assert torch.equal(runs[0, 1], runs[0, 2])
    assert not torch.equal(runs[0, 2], runs[1, 2])


def test_stochastic_rounding_learns_where_rounding_to_nearest_stalls():
    """Steps of a hundredth of a unit in the last place of the weight."""
    runs = {}
    for rounding in (False, True):
        p = torch.full((10000,), 1.0, dtype=torch.bfloat16, requires_grad=True)
        optimizer = FusedSGD([p], lr=2**-7 / 100, backend="cpu", stochastic_rounding=rounding)
        for _ in range(300):
            p.grad = torch.ones_like(p)
            optimizer.step()
        runs[rounding] = float(p.detach().float().mean())
    assert runs[False] == 1.0
    assert abs(runs[True] - (1 - 300 * 2**-7 / 100)) < 3e-4


@pytest.mark.parametrize(
    ("kind", "options", "words"),
    [
        ("AdamW", {"state_dtype": "int4"}, "Invalid state_dtype 'int4': give 'float32' or"),
        ("AdamW", {"state_dtype": torch.float16}, "Invalid state_dtype torch.float16: give"),
        ("AdamW", {"ema_dtype": "int8"}, "Invalid ema_dtype 'int8': give 'float32' or 'bfloat16'"),
        ("AdamW", {"master_weights": "kahan"}, "Invalid master_weights 'kahan': give 'split' or"),
        ("AdamW", {"master_weights": "split"}, "is for parameters in bfloat16 or float16; these"),
        ("AdamW", {"stochastic_rounding": 1}, "Invalid stochastic_rounding 1: give True or False"),
        ("AdamW", {"seed": -1}, "Invalid seed -1: give a whole number from 0"),
        ("AdamW", {"seed": 2**63}, "Invalid seed"),
        ("AdamW", {"low_precision_min_size": 0.5}, "Invalid low_precision_min_size 0.5: give"),
        ("AdamW", {"state_dtype": "int8", "differentiable": True}, "state_dtype cannot be comb"),
        ("Rprop", {"state_dtype": "int8"}, "FusedRprop keeps no moments that may be rounded"),
        ("ASGD", {"state_dtype": "bfloat16"}, "FusedASGD keeps no moments that may be rounded"),
        ("RMSprop", {"state_dtype": "int8", "centered": True}, "with centered=True keeps no"),
    ],
)
def test_what_cannot_be_is_refused_in_one_sentence(kind, options, words):
    with pytest.raises(ValueError, match=words.replace("(", r"\(")):
        OPTIMIZERS[kind].cls([torch.zeros(3, requires_grad=True)], **options)


def test_a_split_float16_is_refused_and_the_group_is_not_added():
    held = params()
    optimizer = FusedAdamW(held, **SPLIT)
    half = torch.zeros(3, dtype=torch.float16, requires_grad=True)
    with pytest.raises(ValueError, match="'split' is for bfloat16 parameters: give 'float32'"):
        optimizer.add_param_group({"params": [half]})
    assert len(optimizer.param_groups) == 1


def test_a_class_without_kernels_refuses_the_storages():
    with pytest.raises(ValueError, match="SparseAdam has no kernels: state_dtype is for those"):
        unfused.SparseAdam([torch.zeros(3, 3, requires_grad=True)], state_dtype="int8")


def test_another_seed_than_the_checkpoints_is_refused():
    held = params()
    first = FusedAdamW(held, seed=3, **LOW)
    train(first, held, 1)
    second = FusedAdamW(clones(held), **LOW)
    before = copy.deepcopy(second.state_dict())
    with pytest.raises(ValueError, match="was written with seed=3, and this optimizer has seed=0"):
        second.load_state_dict(first.state_dict())
    assert str(second.state_dict()) == str(before)


def test_a_checkpoint_of_eight_bits_is_of_its_own_class():
    held = params()
    adam = FusedAdamW(held, **LOW)
    train(adam, held, 1)
    for kind in ("ASGD", "Lion", "SGD"):
        with pytest.raises(ValueError, match="This checkpoint is of another optimizer"):
            OPTIMIZERS[kind].cls(clones(held)).load_state_dict(adam.state_dict())


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("damage", ["codes", "scales", "missing", "remainder"])
def test_damaged_entries_are_refused_before_anything_moves(damage, backend):
    held = params()
    optimizer = FusedAdamW(held, backend=backend, **STORED[3])
    train(optimizer, held, 1)
    state = optimizer.state[held[1]]
    if damage == "codes":
        state["exp_avg_codes"] = state["exp_avg_codes"].float()
    elif damage == "scales":
        state["exp_avg_sq_scales"] = state["exp_avg_sq_scales"][:-1]
    elif damage == "missing":
        del state["exp_avg_scales"]
    else:
        state["master_remainder"] = state["master_remainder"][:5]
    set_grads(held, make_grads(held))
    before = [t.detach().clone() for t in [*held, *states(optimizer, held)]]
    with pytest.raises(ValueError, match=r"does not fit|is missing|no 'exp_avg'"):
        optimizer.step()
    assert_equal([*held, *states(optimizer, held)], before)


@pytest.mark.parametrize(
    ("dtype", "options", "bytes_held"),
    [
        (torch.float32, {}, 16),
        (torch.float32, {"state_dtype": "bfloat16"}, 12),
        (torch.float32, LOW, 10.125),
        (torch.bfloat16, {}, 8),
        (torch.bfloat16, LOW, 6.125),
        (torch.bfloat16, SPLIT, 14),
        (torch.bfloat16, {**SPLIT, "state_dtype": "bfloat16"}, 10),
        (torch.bfloat16, {**SPLIT, **LOW}, 8.125),
        (torch.bfloat16, {"master_weights": "float32"}, 16),
    ],
    ids=str,
)
def test_so_many_bytes_are_held(dtype, options, bytes_held):
    """As counted from the tensors that are there, and as `bytes_per_parameter` says before."""
    p = torch.zeros(2**16, dtype=dtype, requires_grad=True)
    optimizer = FusedAdamW([p], **options)
    said = sum(optimizer.bytes_per_parameter(optimizer.param_groups[0]).values())
    train(optimizer, [p], 1)
    counted = p.nbytes + p.grad.nbytes + sum(t.nbytes for t in states(optimizer, [p])) - 8
    assert abs(counted / p.numel() - bytes_held) < 0.001
    assert abs(said - bytes_held) < 0.001


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_weight_that_is_filled_with_one_value_is_noticed(backend):
    """A checksum that sums products with the index would not see it."""
    p = torch.ones(8192, dtype=torch.bfloat16, requires_grad=True)
    optimizer = FusedAdamW([p], lr=1e-4, weight_decay=0.0, backend=backend, **SPLIT)
    for value in (None, 0.0, 0.5):
        if value is not None:
            p.data.fill_(value)
        p.grad = torch.ones_like(p)
        optimizer.step()
        master = optimizer.full_precision_state_dict()["state"][0]["master_weights"]
        torch.testing.assert_close(
            master, torch.full((8192,), (value if value is not None else 1) - 1e-4)
        )


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("master", ["split", "float32"])
def test_masters_follow_a_parameter_into_another_layout(master, backend):
    torch.manual_seed(0)
    p = torch.randn(16, 16, 4, 4).bfloat16().requires_grad_()
    optimizer = FusedAdamW([p], lr=1e-3, backend=backend, master_weights=master)
    train(optimizer, [p], 3)
    before = optimizer.full_precision_state_dict()["state"][0]["master_weights"]
    p.data = p.data.to(memory_format=torch.channels_last)
    assert_equal([optimizer.full_precision_state_dict()["state"][0]["master_weights"]], [before])
    optimizer.param_groups[0].update(lr=0.0, weight_decay=0.0)
    train(optimizer, [p], 1)
    assert_equal([optimizer.full_precision_state_dict()["state"][0]["master_weights"]], [before])


@pytest.mark.parametrize("options", [SPLIT, {"master_weights": "float32"}], ids=str)
def test_a_parameter_with_gaps_keeps_its_master(options):
    """No kernel serves it: torch's step does, by way of the same storages."""
    torch.manual_seed(0)
    gaps = nn.Parameter(torch.randn(64, 256).bfloat16()[:, ::2].t())
    dense = nn.Parameter(gaps.detach().contiguous())
    runs = []
    for p in (gaps, dense):
        optimizer = FusedAdamW([p], lr=1e-5, backend="auto" if p is gaps else "eager", **options)
        for step in range(50):
            torch.manual_seed(step)
            p.grad = torch.randn(128, 64).bfloat16()
            optimizer.step()
        runs.append(optimizer.full_precision_state_dict()["state"][0]["master_weights"])
    assert_equal(runs[:1], runs[1:])


def test_what_is_asked_for_no_more_does_not_stay_in_16_bits():
    p = torch.ones(5000, requires_grad=True)
    optimizer = FusedAdamW(
        [p], backend="cpu", state_dtype="bfloat16", ema_decay=0.9, ema_dtype="bfloat16"
    )
    train(optimizer, [p], 1)
    again = p.detach().clone().requires_grad_()
    other = FusedAdamW([again], backend="cpu", ema_decay=0.9)
    other.load_state_dict(optimizer.state_dict())
    train(other, [again], 1)
    assert {other.state[again][k].dtype for k in ("exp_avg_sq", "ema_weights")} == {torch.float32}


def test_a_group_that_switches_something_on_has_the_constructors_seed():
    a, b, c = params()
    groups = [{"params": [a], "stochastic_rounding": True}, {"params": [b], "state_dtype": "int8"}]
    optimizer = FusedAdamW([*groups, {"params": [c]}], seed=5, low_precision_min_size=0)
    held = [{k: v for k, v in g.items() if "spectramind" in k} for g in optimizer.param_groups]
    assert held == [
        {"spectramind_stochastic_rounding": True, "spectramind_seed": 5},
        {
            "spectramind_state_dtype": "int8",
            "spectramind_low_precision_min_size": 0,
            "spectramind_seed": 5,
        },
        {},
    ]


def test_complex_states_keep_both_parts():
    p = torch.randn(4, dtype=torch.complex64, requires_grad=True)
    optimizer = FusedAdamW([p])
    train(optimizer, [p], 1)
    full = optimizer.full_precision_state_dict()["state"][0]
    assert_equal([full["exp_avg"]], [optimizer.state[p]["exp_avg"]])


def test_codes_of_another_shape_are_refused_when_they_are_loaded():
    first, second = torch.zeros(64, 128), torch.zeros(96, 128)
    saved = FusedAdamW([first.bfloat16().requires_grad_()], **STORED[3])
    train(saved, saved.param_groups[0]["params"], 1)
    other = FusedAdamW([second.bfloat16().requires_grad_()], **STORED[3])
    with pytest.raises(ValueError, match=r"has shape .*, the parameter \(96, 128\)"):
        other.load_state_dict(saved.state_dict())
    assert not other.state


def test_full_precision_is_not_taken_of_averages():
    held = params()
    optimizer = FusedAdamW(held, ema_decay=0.9, **SPLIT)
    train(optimizer, held, 1)
    with optimizer.ema_weights(), pytest.raises(RuntimeError, match="leave it first"):
        optimizer.full_precision_state_dict()


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_infinite_count_draws_bits_all_the_same(backend):
    held = params()
    optimizer = FusedAdamW(held, backend=backend, **STORED[0])
    train(optimizer, held, 1)
    for p in held:
        optimizer.state[p]["step"].fill_(float("inf"))
    train(optimizer, held, 1)
    assert all(p.isfinite().all() for p in held)


def test_from_one_master_to_the_other_at_exact_ties():
    """What they round otherwise moves by one unit of float32, and takes no other along."""
    own = torch.arange(1, 8193).bfloat16()
    p = own.clone().requires_grad_()
    single = FusedAdamW([p], lr=0.0, weight_decay=0.0, master_weights="float32", backend="cpu")
    train(single, [p], 1)
    master = single.state[p]["master_weights"]
    bits = master.view(torch.int32)
    bits[:4096:2] = (own.view(torch.int16).to(torch.int32)[:4096:2] << 16) + 0x8000  # ties
    p.data.copy_(master.to(torch.bfloat16))
    q = p.detach().clone().requires_grad_()
    split = FusedAdamW([q], lr=0.0, weight_decay=0.0, backend="cpu", **SPLIT)
    split.load_state_dict(single.state_dict())
    train(split, [q], 1)
    after = split.full_precision_state_dict()["state"][0]["master_weights"]
    assert_equal([q], [p])
    assert ((after.view(torch.int32) - bits).abs() <= 1).all()


@pytest.mark.cpu
@pytest.mark.parametrize("backend", ["cpu", "eager"])
def test_a_16_bit_state_of_a_float64_parameter_is_rounded_to_nearest(backend):
    """Someone cast it: nothing beside a float64 parameter is rounded at random."""
    param = torch.full((3,), 0.5, dtype=torch.float64).requires_grad_()
    optimizer = FusedAdamW([param], stochastic_rounding=True, backend=backend)
    for _ in range(2):
        param.grad = torch.full((3,), -2.6, dtype=torch.float64)
        optimizer.step()
        state = optimizer.state[param]
        state["exp_avg"] = state["exp_avg"].bfloat16()
    expected = torch.tensor(-0.26).bfloat16().double().lerp(torch.tensor(-2.6).double(), 0.1)
    assert_equal([state["exp_avg"]], [expected.expand(3).bfloat16()])
