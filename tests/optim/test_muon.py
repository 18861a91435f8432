"""Muon: torch's numbers within the rounding of bfloat16 products, and everything around them."""

import copy
import math

import pytest
import torch

from spectramind_fused import FusedAdamW, FusedMuon, GradScaler
from spectramind_fused.optim.muon import Muon
from spectramind_fused.stepping import orthogonal
from spectramind_fused.stepping.orthogonal import orthogonalized, polynomials
from tests.asserts import assert_equal
from tests.backends import BACKENDS, KERNELS
from tests.inputs import clones, give, make_grads, set_grads

SHAPES = [(6, 10), (10, 6), (6, 10), (1, 7), (5, 1), (33, 17), (8, 8), (6, 10)]
# Newton-Schulz is computed in bfloat16, and multiplies what it is given by 3.4 in each of 5 steps.
TOLERANCE = {"rtol": 1e-5, "atol": 2e-6}
CHANGES = [
    {},
    {"nesterov": False, "momentum": 0.5, "weight_decay": 0.0},
    {"adjust_lr_fn": "match_rms_adamw", "ns_steps": 3, "eps": 100.0},
    {"ns_coefficients": (2.0, -1.5, 0.5), "weight_decay": 0.3},
]


def make_matrices(dtype=torch.float32, shapes=SHAPES):
    torch.manual_seed(3)
    params = [torch.randn(shape).to(dtype).requires_grad_() for shape in shapes]
    return [*params, torch.randn(12, 20).to(dtype).t().requires_grad_()]  # it lies transposed


def make_rest(dtype=torch.float32):
    torch.manual_seed(4)
    return [torch.randn(shape).to(dtype).requires_grad_() for shape in ((9,), (3, 2, 4), (5, 5))]


def by_turns(optimizers, params, steps=3, seed=1, scale=1.0):
    """Steps each by the same gradients."""
    for optimizer, own in zip(optimizers, params, strict=True):
        torch.manual_seed(seed)
        for _ in range(steps):
            set_grads(own, [g * scale for g in make_grads(own)])
            optimizer.step()


def close(params, expected, **tolerance):
    torch.testing.assert_close(
        [p.detach() for p in params], [p.detach() for p in expected], **(tolerance or TOLERANCE)
    )


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("options", CHANGES)
def test_it_steps_as_torch(options, backend):
    params = make_matrices()
    expected = clones(params)
    ours, torchs = (
        FusedMuon(params, lr=0.02, backend=backend, **options),
        torch.optim.Muon(expected, lr=0.02, **options),
    )
    by_turns([ours, torchs], [params, expected])
    close(params, expected)
    buffers = [[o.state[p]["momentum_buffer"] for p in own]
               for o, own in ((ours, params), (torchs, expected))]  # fmt: skip
    close(*buffers, rtol=1e-6, atol=1e-7)
    if backend in KERNELS:
        assert ours.describe_plan().eager == []
    assert set(ours.state[params[0]]) == {"momentum_buffer"}


@pytest.mark.parametrize("backend", KERNELS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_every_dtype_is_rounded_once(dtype, backend):
    if dtype == torch.float64 and backend != "cpu":
        pytest.skip("kernels of GPUs have no float64")
    params = make_matrices(dtype)
    wide = [p.detach().clone().to(torch.float64).requires_grad_() for p in params]
    ours, torchs = FusedMuon(params, lr=0.02, backend=backend), torch.optim.Muon(wide, lr=0.02)
    torch.manual_seed(1)
    grads = make_grads(params)
    set_grads(params, grads)
    set_grads(wide, [g.double() for g in grads])
    ours.step()
    torchs.step()
    one = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11, torch.float64: 1e-15}[dtype]
    close([p.double() for p in params], wide, rtol=one, atol=2e-3 if one > 1e-9 else 1e-15)


@pytest.mark.parametrize("backend", [b for b in KERNELS if b != "cpu"])
def test_all_backends_have_the_same_bits(backend):
    ends = {}
    for name in ("cpu", backend):
        params, rest = make_matrices(), make_rest()
        groups = [{"params": params}, {"params": rest, "use_muon": False}]
        options = {"lookahead_k": 2, "ema_decay": 0.9, "clip_grad_norm": 1.0, "zero_grads": True}
        optimizer = FusedMuon(groups, lr=0.02, backend=name, **options)
        by_turns([optimizer], [[*params, *rest]], steps=4)
        ends[name] = [
            *params, *rest,
            *(t for p in (*params, *rest) for t in optimizer.state[p].values()),
        ]  # fmt: skip
    assert_equal(*ends.values())


@pytest.mark.parametrize("backend", BACKENDS)
def test_adamw_steps_the_rest_behind_one_clip_and_one_scaler(backend):
    """As torch's two optimizers behind clip_grad_norm_ and a GradScaler."""
    params, rest = make_matrices(), make_rest()
    expected, others = clones(params), clones(rest)
    adamw = {"lr": 3e-3, "betas": (0.8, 0.95), "eps": 1e-6, "weight_decay": 0.2}
    ours = FusedMuon(
        [{"params": params}, {"params": rest, "use_muon": False, **adamw}],
        lr=0.02, backend=backend, clip_grad_norm=0.7,
    )  # fmt: skip
    pair = torch.optim.Muon(expected, lr=0.02), torch.optim.AdamW(others, **adamw)
    scaler = GradScaler("cpu", init_scale=8.0)
    torch.manual_seed(1)
    for turn in range(4):
        grads = make_grads([*params, *rest])
        give(grads, [*expected, *others])
        if turn == 1:
            grads[0].view(-1)[3] = math.inf  # this step is skipped
        set_grads([*params, *rest], [g * scaler.get_scale() for g in grads])
        scaler.scale(torch.ones(()))  # as a loss would
        scaler.step(ours)
        scaler.update()
        if turn != 1:
            torch.nn.utils.clip_grad_norm_([*expected, *others], 0.7)
            for optimizer in pair:
                optimizer.step()
    close([*params, *rest], [*expected, *others])
    assert set(ours.state[rest[0]]) == {"step", "exp_avg", "exp_avg_sq"}
    assert float(ours.state[rest[0]]["step"]) == 3


@pytest.mark.parametrize("backend", KERNELS)
@pytest.mark.parametrize(
    "options",
    [
        {"lookahead_k": 2, "ema_decay": 0.9},
        {"state_dtype": "bfloat16", "low_precision_min_size": 1},
        {"state_dtype": "int8", "low_precision_min_size": 1},
        {"master_weights": "split", "ema_decay": 0.5, "lookahead_k": 2},
        {"stochastic_rounding": True, "seed": 7},
    ],
    ids=lambda options: next(iter(options)),
)
def test_storages_and_what_follows_a_step_are_as_in_plain_torch(options, backend):
    """The eager backend is torch's step with the rest in plain torch, and draws the same bits."""
    low = {"master_weights", "stochastic_rounding"} & set(options)
    dtype = torch.bfloat16 if low else torch.float32
    trained = []
    for name in (backend, "eager"):
        params = make_matrices(dtype)
        optimizer = FusedMuon(params, lr=0.02, backend=name, **options)
        by_turns([optimizer], [params], steps=4)
        trained.append((params, optimizer))
    (params, ours), (expected, eager) = trained
    # A code or a bfloat16 that falls on the other side.
    tolerance = {"rtol": 2e-2, "atol": 2e-3} if {*options} & {"state_dtype"} or low else TOLERANCE
    close(params, expected, **tolerance)
    for p, q in zip(params, expected, strict=True):
        assert ours.state[p].keys() == eager.state[q].keys()
        if "lookahead_k" in options:
            names = ("slow_weights", "ema_weights")
            close(*[[o.state[x][n].float() for n in names] for o, x in ((ours, p), (eager, q))],
                  **tolerance)  # fmt: skip


@pytest.mark.parametrize("backend", BACKENDS)
def test_who_has_no_gradient_is_left_alone_and_joins_again(backend):
    params = make_matrices()
    expected = clones(params)
    ours, torchs = FusedMuon(params, lr=0.02, backend=backend), torch.optim.Muon(expected, lr=0.02)
    torch.manual_seed(1)
    for absent in ((), (0, 3), (0, 1, 2), (), (5,)):
        grads = make_grads(params)
        for own in (params, expected):
            set_grads(own, [g.clone() for g in grads])
            for i in absent:
                own[i].grad = None
        ours.step()
        torchs.step()
    close(params, expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_checkpoints_go_both_ways(backend):
    params = make_matrices()
    ours, expected = FusedMuon(params, lr=0.02, backend=backend), clones(params)
    torchs = torch.optim.Muon(expected, lr=0.02)
    by_turns([ours, torchs], [params, expected], steps=2)
    saved = copy.deepcopy(ours.state_dict())
    assert saved["param_groups"] == torchs.state_dict()["param_groups"]

    resumed, taken = clones(params), clones(params)
    again, plain = FusedMuon(resumed, lr=1.0, backend=backend), torch.optim.Muon(taken, lr=1.0)
    again.load_state_dict(torchs.state_dict())
    plain.load_state_dict(saved)
    by_turns([ours, again, plain], [params, resumed, taken], steps=2, seed=2)
    close(resumed, params)
    close(taken, params)


def test_a_run_goes_on_from_its_checkpoint_to_the_same_bits():
    params, rest = make_matrices(torch.bfloat16), make_rest(torch.bfloat16)
    low = {"state_dtype": "int8", "low_precision_min_size": 1, "stochastic_rounding": True}

    def made(matrices, others):
        groups = [{"params": matrices}, {"params": others, "use_muon": False}]
        return FusedMuon(groups, lr=0.02, ema_decay=0.9, lookahead_k=3, **low)

    whole = made(params, rest)
    by_turns([whole], [[*params, *rest]], steps=2)
    copies = clones(params), clones(rest)
    resumed = made(*copies)
    resumed.load_state_dict(copy.deepcopy(whole.state_dict()))
    everyone = [*params, *rest], [*copies[0], *copies[1]]
    by_turns([whole, resumed], everyone, steps=3, seed=2)
    assert_equal(*everyone)


def test_matrices_of_a_shape_are_multiplied_together(monkeypatch):
    calls = []

    def noted(stack, *args):
        calls.append(tuple(stack.shape))
        return orthogonalized(stack, *args)

    monkeypatch.setattr(orthogonal, "orthogonalized", noted)
    params = make_matrices(shapes=[(6, 4)] * 40 + [(4, 6)] * 9)
    # Groups that differ in how they step, not in what is made of a matrix.
    groups = [{"params": params[::2], "weight_decay": 0.0}, {"params": params[1::2], "lr": 1.0}]
    optimizer = FusedMuon(groups)
    by_turns([optimizer], [params], steps=1)
    assert sorted(calls) == [(1, 20, 12), (9, 4, 6), (40, 6, 4)]
    groups = optimizer.param_groups
    groups[0]["ns_steps"] = 3  # from now on apart
    calls.clear()
    by_turns([optimizer], [params], steps=1)
    assert len(calls) == 5


@pytest.mark.parametrize("backend", BACKENDS)
def test_stacks_splits_and_polynomials_beyond_torchs(backend):
    """Each matrix by itself as torch's Muon steps it; the polynomials by their definition."""
    torch.manual_seed(0)
    experts = torch.randn(3, 4, 10).requires_grad_()
    fused = torch.randn(14, 6).requires_grad_()
    singles = [*experts.detach().clone().unbind(), *fused.detach().clone().split((8, 4, 2))]
    singles = [part.clone().requires_grad_() for part in singles]
    ours = FusedMuon(
        [
            {"params": [experts], "batched": True},
            {"params": [fused], "split_sizes": (8, 4, 2)},
        ],
        lr=0.02, backend=backend,
    )  # fmt: skip
    torchs = torch.optim.Muon(singles, lr=0.02)
    for _ in range(3):
        grads = make_grads([experts, fused])
        set_grads([experts, fused], grads)
        set_grads(singles, [*grads[0].unbind(), *grads[1].split((8, 4, 2))])
        ours.step()
        torchs.step()
    found = [*experts.detach().unbind(), *fused.detach().split((8, 4, 2))]
    # The learning rate of a part that is not the first is put into its matrix, in bfloat16.
    close(found, singles, rtol=1e-5, atol=2e-4)


def test_the_polar_express_comes_closer_to_orthogonal():
    torch.manual_seed(0)
    stack = torch.randn(3, 40, 64)
    off = {}
    for name in ((3.4445, -4.775, 2.0315), "polar_express"):
        singular = torch.linalg.svdvals(orthogonalized(stack, name, 6, 1e-7).float())
        off[name] = float((singular - 1).abs().max())
    assert off["polar_express"] < 0.01 < 0.3 < off[(3.4445, -4.775, 2.0315)]
    for steps, within in ((6, 0.01), (9, 1e-9)):  # of values from a thousandth of the norm on
        x = torch.logspace(-3, 0, 1000, dtype=torch.float64)
        for a, b, c in polynomials("polar_express", steps):
            x = a * x + b * x**3 + c * x**5
        assert float((x - 1).abs().max()) < within
    params = make_matrices()
    twins = clones(params)
    both = [
        FusedMuon(own, ns_coefficients="polar_express", backend=backend)
        for own, backend in ((params, "auto"), (twins, "eager"))
    ]
    by_turns(both, [params, twins])
    close(params, twins)


@pytest.mark.parametrize(
    ("group", "match"),
    [
        ({"params": [torch.zeros(3)]}, "only supports 2D .* use_muon=False, which AdamW steps.$"),
        ({"params": [torch.zeros(2, 3, 3)]}, "or batched=True for stacks of matrices"),
        ({"params": [torch.zeros(6, 3)], "split_sizes": (2, 3)}, "does not split the 6 rows"),
        ({"params": [torch.zeros(6, 3)], "split_sizes": (7, -1)}, "give whole numbers above 0"),
        ({"params": [torch.zeros(6, 3)], "ns_coefficients": "polar"}, "three numbers, or 'polar_e"),
        ({"params": [torch.zeros(6, 3)], "ns_coefficients": (1.0, 2.0)}, "give three numbers"),
        ({"params": [torch.zeros(6, 3)], "split_sizes": 3}, "give whole numbers above 0"),
        ({"params": [torch.zeros(6, 3)], "ns_steps": 100}, "a whole number from 0 to 99"),
        ({"params": [torch.zeros(6, 3)], "adjust_lr_fn": "none"}, "is not supported: give None"),
    ],
)
def test_what_makes_no_matrices_is_refused_in_a_sentence(group, match):
    kept = torch.zeros(2, 2, requires_grad=True)
    optimizer = FusedMuon([kept])
    with pytest.raises(ValueError, match=match):
        optimizer.add_param_group(group)
    assert len(optimizer.param_groups) == 1
    with pytest.raises(ValueError, match=match):
        FusedMuon([group])


def test_a_gradient_that_is_not_finite_spoils_its_own_matrix_alone():
    """As in torch: the products of a stack do not mix its matrices."""
    params = make_matrices()
    expected = clones(params)
    pair = FusedMuon(params, lr=0.02), torch.optim.Muon(expected, lr=0.02)
    torch.manual_seed(1)
    for turn in range(2):
        grads = make_grads(params)
        if turn == 0:
            grads[2][1, 1] = math.nan
        give(grads, params, expected)
        for optimizer in pair:
            optimizer.step()
    for i, p in enumerate(params):
        assert bool(p.isnan().any()) == (i == 2)
    close(
        [p for i, p in enumerate(params) if i != 2], [q for i, q in enumerate(expected) if i != 2]
    )


def test_the_group_of_adamw_is_fused_adamw_bit_for_bit():
    rest = make_rest()
    twins = clones(rest)
    more = make_matrices(shapes=[(4, 4)])
    ours = FusedMuon([{"params": more}, {"params": rest, "use_muon": False}], lr=0.02)
    others = FusedAdamW(twins)  # with its own defaults: Muon's lr is not for it
    by_turns([ours, others], [[*rest, *more], [*twins, *clones(more)]])
    assert_equal(rest, twins)


def test_autocast_around_a_step_is_not_for_its_products():
    ends = []
    for enabled in (False, True):
        params = make_matrices()
        optimizer = FusedMuon(params, lr=0.02)
        with torch.autocast("cpu", dtype=torch.float16, enabled=enabled):
            by_turns([optimizer], [params])
        ends.append(params)
    assert_equal(*ends)


def test_the_plain_class_is_torchs_where_torch_has_it():
    params = make_matrices()
    expected = clones(params)
    by_turns([Muon(params, 0.02), torch.optim.Muon(expected, 0.02)], [params, expected])
    assert_equal(params, expected)


@pytest.mark.parametrize("backend", KERNELS)
def test_gradients_are_zeroed_behind_the_first_pass(backend):
    params, rest = make_matrices(), make_rest()
    groups = [{"params": params}, {"params": rest, "use_muon": False}]
    optimizer = FusedMuon(groups, lr=0.02, backend=backend, zero_grads=True)
    twins = clones(params)
    torchs = torch.optim.Muon(twins, lr=0.02)
    give(make_grads([*params, *rest]), [*params, *rest])
    set_grads(twins, [p.grad for p in params])
    optimizer.step()
    torchs.step()
    assert not any(p.grad.any() for p in (*params, *rest))
    close(params, twins)


def test_large_stacks_are_multiplied_in_parts(monkeypatch):
    """So the room that the products need is bounded, for experts in one parameter, too."""
    ends, sizes = [], []
    of_torch = orthogonal.orthogonalized
    monkeypatch.setattr(
        orthogonal, "orthogonalized", lambda x, *how: sizes.append(x.numel()) or of_torch(x, *how)
    )
    for most in (1 << 24, 70):
        monkeypatch.setattr(orthogonal, "MOST_ELEMENTS", most)
        sizes.clear()
        params = make_matrices(shapes=[(5, 7)] * 3 + [(4, 3, 5, 7)])
        by_turns([FusedMuon(params, lr=0.02, batched=True)], [params])
        ends.append(params)
    close(*ends)
    assert max(size for size in sizes if size != 12 * 20) == 70  # two of 5 x 7


@pytest.mark.parametrize("backend", ["cpu", "eager"])
@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"ns_steps": 150}, "a whole number from 0 to 99"),
        ({"ns_coefficients": "polar"}, "give three numbers"),
        ({"split_sizes": (3, 3)}, "does not split the"),
        ({"adjust_lr_fn": "none"}, "is not supported"),
        ({"eps": None}, "Invalid eps None: give a number"),
        ({"eps": -1.0}, "Invalid eps -1.0"),
        ({"eps": float("nan")}, "Invalid eps nan"),
        ({"use_muon": False}, "use_muon was switched off"),
    ],
)
def test_a_change_that_cannot_be_is_refused_before_anything_moves(change, match, backend):
    params = make_matrices()
    optimizer = FusedMuon(params, backend=backend)
    by_turns([optimizer], [params], steps=1)
    before = [
        t.clone() for t in (*params, *(optimizer.state[p]["momentum_buffer"] for p in params))
    ]
    optimizer.param_groups[0].update(change)
    with pytest.raises(ValueError, match=match):
        optimizer.step()
    assert_equal(before, [*params, *(optimizer.state[p]["momentum_buffer"] for p in params)])
    saved = copy.deepcopy(optimizer.state_dict())
    if "use_muon" not in change:
        with pytest.raises(ValueError, match=match):
            FusedMuon(clones(params)).load_state_dict(saved)


def test_a_group_of_adamw_that_is_switched_to_muon_is_refused():
    params = make_matrices()
    optimizer = FusedMuon([{"params": params, "use_muon": False}])
    by_turns([optimizer], [params], steps=1)
    optimizer.param_groups[0]["use_muon"] = True
    with pytest.raises(ValueError, match="is to be stepped by Muon, and has 'exp_avg'"):
        optimizer.step()
    optimizer.state.clear()
    optimizer.step()


@pytest.mark.parametrize("backend", ["cpu", "eager"])
@pytest.mark.parametrize("how", ["to AdamW", "to Muon", "a vector to Muon"])
def test_a_parameter_that_moved_to_the_other_rule_is_refused_before_anything_moves(how, backend):
    matrices, others = make_matrices(), [*make_matrices(), torch.randn(7, requires_grad=True)]
    optimizer = FusedMuon(
        [{"params": matrices}, {"params": others, "use_muon": False}], backend=backend
    )
    params = [*matrices, *others]
    by_turns([optimizer], [params], steps=1)
    muon, adamw = (group["params"] for group in optimizer.param_groups)
    if how == "to AdamW":
        adamw.append(muon.pop())
        match = "is to be stepped by AdamW, and has 'momentum_buffer', a state of Muon's"
    elif how == "to Muon":
        muon.append(adamw.pop(0))
        match = "is to be stepped by Muon, and has 'exp_avg', a state of AdamW's"
    else:
        muon.append(adamw.pop())
        match = "Muon only supports 2D parameters"
    before = [t.clone() for t in params]
    with pytest.raises(ValueError, match=match):
        optimizer.step()
    assert_equal(before, params)


@pytest.mark.parametrize("group", [0, 1])
@pytest.mark.parametrize("option", ["lr", "weight_decay"])
def test_a_group_without_an_option_is_refused_before_anything_moves(group, option):
    params, others = make_matrices(), [torch.randn(7, requires_grad=True)]
    optimizer = FusedMuon([{"params": params}, {"params": others, "use_muon": False}])
    by_turns([optimizer], [[*params, *others]], steps=1)
    before = [t.clone() for t in (*params, *others)]
    del optimizer.param_groups[group][option]
    with pytest.raises(KeyError, match=option):
        optimizer.step()
    assert_equal(before, [*params, *others])


@pytest.mark.parametrize("backend", ["cpu", "eager"])
def test_what_torch_ignores_or_changes_in_its_place_is_as_in_torch(backend):
    """`maximize` is none of Muon's options; a list may come to hold other numbers."""
    params = make_matrices()
    expected = clones(params)
    coefficients = [[2.0, -1.5, 0.5], [2.0, -1.5, 0.5]]
    pair = FusedMuon(params, lr=0.02, backend=backend), torch.optim.Muon(expected, lr=0.02)
    for optimizer, own in zip(pair, coefficients, strict=True):
        optimizer.param_groups[0].update(maximize=True, ns_coefficients=own)
    by_turns(pair, [params, expected], steps=2)
    for own in coefficients:
        own[0] = 2.2
    by_turns(pair, [params, expected], steps=2, seed=2)
    close(params, expected)
    buffers = [[o.state[p]["momentum_buffer"] for p in own]
               for o, own in zip(pair, (params, expected), strict=True)]  # fmt: skip
    close(*buffers, rtol=1e-6, atol=1e-7)


def test_checkpoints_of_torchs_two_optimizers_come_together():
    """As docs/muon.md puts them together; splits that torch has not stay."""
    params, rest = make_matrices(shapes=[(6, 4), (6, 4)])[:2], make_rest()
    twins, others = clones(params), clones(rest)
    muon, adamw = torch.optim.Muon(twins, lr=0.02), torch.optim.AdamW(others, lr=1e-2)
    by_turns([muon], [twins], steps=2)
    by_turns([adamw], [others], steps=2)
    ours = FusedMuon([{"params": clones(twins), "split_sizes": (4, 2)},
                      {"params": clones(others), "use_muon": False}])  # fmt: skip
    first, second = muon.state_dict(), adamw.state_dict()
    shift = len(first["state"])
    for group in second["param_groups"]:
        group["params"] = [i + shift for i in group["params"]]
    ours.load_state_dict(
        {
            "state": {**first["state"], **{i + shift: s for i, s in second["state"].items()}},
            "param_groups": first["param_groups"] + second["param_groups"],
        }
    )
    assert ours.param_groups[0]["split_sizes"] == (4, 2)
    assert ours.param_groups[1]["lr"] == 1e-2
    own = ours.param_groups[1]["params"]
    for optimizer, mine in ((ours, own), (adamw, others)):
        torch.manual_seed(5)
        set_grads(mine, make_grads(mine))
        optimizer.step()
    close(own, others)


def test_complex_parameters_are_for_adamw():
    made = torch.randn(3, 4, dtype=torch.complex64).requires_grad_()
    made.grad = torch.randn_like(made)
    with pytest.raises(RuntimeError, match="does not support complex parameters"):
        FusedMuon([made]).step()
    before = made.detach().clone()
    FusedMuon([{"params": [made], "use_muon": False}]).step()
    assert not torch.equal(before, made.detach())


@pytest.mark.parametrize("backend", BACKENDS)
def test_empty_matrices_are_left_as_they_are(backend):
    made = [torch.empty(2, 0, 3), torch.empty(0, 3), torch.randn(2, 3)]
    params = [p.requires_grad_() for p in made]
    give([torch.ones_like(p) for p in params], params)
    before = params[2].detach().clone()
    FusedMuon(params, batched=True, backend=backend).step()
    assert not torch.equal(before, params[2].detach())
