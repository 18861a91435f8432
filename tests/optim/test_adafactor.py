"""Adafactor: mean squares of rows and columns, wherever these lie."""

import copy
import io

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from spectramind_fused import FusedAdafactor, GradScaler
from spectramind_fused.multi_tensor import PIECE
from spectramind_fused.multi_tensor.factoring import TILE, Layout
from tests import place
from tests.asserts import assert_equal, close
from tests.backends import GPU_KERNELS, KERNELS
from tests.inputs import clones, give, make_grads, set_grads
from tests.oracle import RICHEST
from tests.pairs import BesideReference, refused, train

OPTIONS = RICHEST["Adafactor"]


def matrices(large=True, dtype=torch.float32):
    """Of every kind of tile: one or several of a matrix, several matrices, rows anywhere."""
    made = [
        torch.randn(12, 20, 3, 3),
        torch.randn(12, 20, 3, 3).to(memory_format=torch.channels_last),
        torch.randn(40, 6, 1, 1),
        torch.randn(70, 6, 5).permute(1, 2, 0),  # other dimensions inside of rows and columns,
        torch.randn(4, 5, 3, 6).permute(2, 0, 3, 1),  # and between them
        torch.randn(3, 20, 130),
        torch.randn(1, 700),
        torch.randn(700, 1),
        torch.randn(5, 1, 1),
        torch.randn(0, 4),
    ]
    if large:
        made += [
            torch.randn(130, 600),
            torch.randn(600, 130).t(),
            torch.randn(10, 3500),
            torch.randn(40000, 1),
            torch.randn(400, 90),  # rows too short for a block of threads, and more than a tile
            torch.randn(90, 400).t(),
            torch.randn(3000, 12),
            torch.randn(20000, 2),
            torch.randn(2, 150, 230),
        ]
    odd = torch.randn(101 * 7 + 3).to(dtype)[3:].view(7, 101)  # at an address of 4-byte alignment
    return [p.to(dtype).requires_grad_() for p in made] + [odd.requires_grad_()]


@pytest.mark.parametrize("backend", KERNELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_matrices_that_lie_anyhow_are_those_of_the_oracle_bit_for_bit(backend, dtype):
    both = BesideReference("Adafactor", matrices(dtype=dtype), backend, **OPTIONS)
    for _ in range(2):
        both.step()
    both.check()


@pytest.mark.cpu
def test_float64_is_summed_in_pairs():
    both = BesideReference("Adafactor", matrices(dtype=torch.float64), "cpu", **OPTIONS)
    for _ in range(3):
        both.step()
    both.check()


@pytest.mark.parametrize("backend", KERNELS)
@pytest.mark.parametrize("zero_grads", [False, True])
def test_scaled_clipped_and_skipped_steps(backend, zero_grads):
    ours = {"lookahead_k": 2, "ema_decay": 0.9, "clip_grad_norm": 1.0}
    both = BesideReference("Adafactor", matrices(False), backend, zero_grads, **OPTIONS, **ours)
    scaler = GradScaler(place.device, init_scale=4.0)
    for step in range(4):
        scaler.scale(torch.ones(()))
        scale = scaler.get_scale()
        grads = [g * scale for g in make_grads(both.params)]
        if step == 1:
            grads[0][3, 2, 1, 0] = float("inf")
        both.give(grads)
        scaler.step(both.optimizer)
        scaler.update()
        both.reference.step(scale, skip=step == 1)
        both.check()
        assert all(bool((p.grad == 0).all()) == zero_grads for p in both.params if p.numel())
    norm = torch.linalg.vector_norm(torch.cat([(g / scale).flatten() for g in grads]).double())
    torch.testing.assert_close(both.optimizer.grad_norm, norm.float())


@pytest.mark.cpu
def test_bits_do_not_depend_on_threads():
    params = matrices()
    twins = clones(params)
    one, two = (FusedAdafactor(p, backend="cpu") for p in (params, twins))
    for _ in range(2):
        give(make_grads(params), params, twins)
        torch.set_num_threads(1)
        one.step()
        torch.set_num_threads(2)
        two.step()
    assert_equal(params, twins)


@pytest.mark.parametrize("backend", GPU_KERNELS)
def test_a_float32_parameter_moves_24_bytes(gpu, backend):
    """4 for the sums, 8 to measure, 12 to step; and factors, which are read from the cache."""
    if place.device != "cpu":
        pytest.skip("counts what the emulator sees")
    params = [torch.randn(40, 160).requires_grad_(), torch.randn(30, 5, 3, 3).requires_grad_()]
    optimizer = FusedAdafactor(params, backend=backend)
    set_grads(params, make_grads(params))
    optimizer.step()
    grads, count = [p.grad for p in params], sum(p.numel() for p in params)
    traffic = {launch.name: launch.traffic for launch in gpu.launches}
    moved = {
        name: [sum(map(of, tensors)) for tensors in (grads, params) for of in (t.loaded, t.stored)]
        for name, t in traffic.items()
    }
    small = params[1].numel()  # rows of 3 are read for the columns once more
    assert moved["squares"] == [4 * (count + small), 0, 0, 0]
    assert moved["measure"] == [4 * count, 0, 4 * count, 0]
    assert moved["update"] == [4 * count, 0, 4 * count, 4 * count]
    assert all(sum(moved[name]) == 0 for name in ("advance", "move", "divide", "scale"))


@pytest.mark.parametrize("backend", KERNELS)
def test_checkpoints_go_both_ways_whatever_their_order(backend):
    """Torch's vectors are contiguous; ours lie like their parameter."""
    torch.manual_seed(0)
    params = matrices(False)[:-2]  # torch fails on an empty one
    torchs = clones(params)
    theirs = torch.optim.Adafactor(torchs, foreach=False)
    train([(theirs, torchs)], 1, 2)
    params = clones(torchs)
    ours = FusedAdafactor(params, backend=backend)
    ours.load_state_dict(copy.deepcopy(theirs.state_dict()))
    for _ in range(2):
        give(make_grads(params), params, torchs)
        ours.step()
        theirs.step()
    close(params, torchs)
    file = io.BytesIO()
    torch.save(ours.state_dict(), file)
    file.seek(0)
    theirs.load_state_dict(torch.load(file, weights_only=True))
    with torch.no_grad():
        for p, q in zip(params, torchs, strict=True):
            q.copy_(p)
    train([(ours, params), (theirs, torchs)], 3, 2)
    close(params, torchs)


@pytest.mark.cpu
def test_what_no_program_can_walk_alone_is_left_to_torch():
    params = [torch.randn(600, 500, 2).permute(2, 0, 1).contiguous().requires_grad_()]
    params.append(torch.randn(600, 500, 2).permute(2, 0, 1).requires_grad_())
    torchs = clones(params)
    ours, theirs = FusedAdafactor(params), torch.optim.Adafactor(torchs, foreach=False)
    train([(ours, params), (theirs, torchs)], 1, 2)
    assert ours.describe_plan().eager == params[1:]
    assert "between rows and columns" in ours.backends()["cpu"]
    assert_equal(params[1:], torchs[1:])


@pytest.mark.parametrize("backend", KERNELS)
def test_eps_is_that_of_each_parameters_dtype(backend):
    """Gradients far below: torch's step, too, is g / eps then. Beside a master it is float32's."""
    params = [torch.zeros(4, 4, dtype=d) for d in (torch.bfloat16, torch.float32, torch.bfloat16)]
    params = [p.requires_grad_() for p in params]
    groups = [{"params": params[:2]}, {"params": params[2:], "master_weights": "float32"}]
    optimizer = FusedAdafactor(groups, lr=1.0, eps=(None, 1.0), backend=backend)
    for p in params:
        p.grad = torch.full_like(p, 2.0**-20)
    optimizer.step()
    moved = [-float(p.detach()[0, 0]) for p in params]
    assert moved[0] == 2.0**-20 / 2.0**-7
    assert moved[1] == moved[2] == 1.0


@pytest.mark.parametrize("backend", [*KERNELS, "eager"])
@pytest.mark.parametrize(
    "options", [{"master_weights": "split"}, {"stochastic_rounding": True},
                {"state_dtype": "float32"}, {}], ids=str,
)  # fmt: skip
def test_vectors_are_float32_where_anything_asks_for_more_than_16_bits(backend, options):
    params = matrices(False, torch.bfloat16)[:4]
    optimizer = FusedAdafactor(params, backend=backend, **options)
    wanted = torch.float32 if options else torch.bfloat16
    for _ in range(2):
        set_grads(params, make_grads(params))
        optimizer.step()
        held = [optimizer.state[p][name] for p in params for name in ("row_var", "col_var")]
        assert {vector.dtype for vector in held} == {wanted}
    size = sum(optimizer.state[p]["row_var"].nbytes for p in params)
    count = sum(p.numel() for p in params)
    taken = optimizer.bytes_per_parameter(optimizer.param_groups[0])
    assert taken["row_var"] == size / count
    twins = clones(params)
    resumed = FusedAdafactor(twins, backend=backend, **options)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    train([(optimizer, params), (resumed, twins)], 2, 2)
    assert_equal(params, twins)
    full = optimizer.full_precision_state_dict()["state"][0]
    assert full["col_var"].dtype == torch.float32


def test_what_makes_no_sense_is_refused_in_a_sentence():
    with pytest.raises(ValueError, match="no moments that may be rounded: state_dtype is None"):
        FusedAdafactor(matrices(False), state_dtype="int8")
    params = matrices(False)[:2]
    optimizer = FusedAdafactor(params)
    give(make_grads(params), params)
    optimizer.step()
    saved = copy.deepcopy(optimizer.state_dict())
    saved["state"][1]["row_var"] = saved["state"][1]["row_var"][:4]
    with pytest.raises(ValueError, match=r"'row_var' of parameter 1, of shape .* is of shape"):
        optimizer.load_state_dict(saved)
    optimizer.state[params[0]]["col_var"] = torch.zeros(3)
    refused(optimizer, params, ValueError, r"'col_var' .* is of shape \(3,\) and not \(12, 20, 1")
    optimizer.state[params[0]]["col_var"] = torch.zeros(12, 20, 1, 3, device="meta")
    with pytest.raises(ValueError, match=r"'col_var' .* is on meta"):
        optimizer.step()
    del optimizer.state[params[0]]["col_var"]
    refused(optimizer, params, ValueError, "no 'col_var'")


@given(st.integers(1, 3), st.integers(1, 2**17), st.integers(1, 700), st.booleans())
@settings(max_examples=300, deadline=None)
def test_no_tensor_has_more_tiles_than_rows_of_partial_sums(first, tall, thin, turned):
    """Else the sums of one would be written over those of the next."""
    tensor = torch.empty(first, tall, thin, device="meta")
    layout = Layout.of(tensor.transpose(1, 2) if turned else tensor)
    tiles = list(layout.tiles())
    assert len(tiles) <= -(-tensor.numel() // PIECE)
    sizes = ((b - a) * (d - c) * (f - e) * (h - g) for a, b, c, d, e, f, g, h, *_ in tiles)
    assert sum(sizes) * layout.between == tensor.numel()


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(1, 300), min_size=2, max_size=4), st.permutations(range(4)))
def test_every_element_is_in_one_tile_and_every_tile_has_a_row(shape, order):
    """A row of the norm's partial sums, of which there is one for each piece."""
    axes = [axis for axis in order if axis < len(shape)]
    tensor = torch.empty([shape[axis] for axis in axes], device="meta")
    tensor = tensor.permute([axes.index(axis) for axis in range(len(shape))])
    layout = Layout.of(tensor)
    assert layout.size == tensor.numel()
    tiles = list(layout.tiles())
    assert len(tiles) <= -(-tensor.numel() // PIECE)
    sizes = [
        (b - a) * (d - c) * layout.between * (f - e) * (h - g)
        for a, b, c, d, e, f, g, h, _, _ in tiles
    ]
    assert sum(sizes) == tensor.numel()
    assert max(sizes) <= 2 * TILE or layout.alone > TILE
    assert len({tile[:8] for tile in tiles}) == len(tiles)


@pytest.mark.parametrize("change", [{"eps": 1e-3}, {"eps": (1e-3,)}, {"eps": None}])
def test_an_eps_that_is_not_two_numbers_is_refused(change):
    param = torch.randn(4, 5).requires_grad_()
    optimizer = FusedAdafactor([param])
    set_grads([param], make_grads([param]))
    optimizer.step()
    before = param.detach().clone()
    optimizer.param_groups[0].update(change)
    with pytest.raises(ValueError, match="give two numbers"):
        optimizer.step()
    assert torch.equal(param, before)


@pytest.mark.cpu
@pytest.mark.parametrize("change", [{"lr": None}, {"d": None}, {"eps": (1e-3, None)}])
def test_none_is_no_number_but_for_the_first_eps(change):
    param = torch.randn(4, 5).requires_grad_()
    optimizer = FusedAdafactor([param], backend="cpu")
    set_grads([param], make_grads([param]))
    optimizer.param_groups[0].update(change)
    with pytest.raises((ValueError, TypeError)):
        optimizer.step()


@pytest.mark.parametrize("backend", KERNELS)
def test_an_infinite_lr_leaves_the_length_to_the_schedule_of_its_own(backend):
    params = [torch.randn(4, 5).requires_grad_(), torch.randn(7).requires_grad_()]
    twins = clones(params)
    pair = (FusedAdafactor(params, lr=float("inf"), backend=backend),
            torch.optim.Adafactor(twins, lr=float("inf"), foreach=False))  # fmt: skip
    train(zip(pair, (params, twins), strict=True), 1)
    close(params, twins)


@pytest.mark.parametrize("left", ["row_var", "col_var"])
def test_a_checkpoint_that_lacks_a_vector_is_refused(left):
    params = [torch.randn(6, 1).requires_grad_()]
    optimizer = FusedAdafactor(params)
    set_grads(params, make_grads(params))
    optimizer.step()
    saved = copy.deepcopy(optimizer.state_dict())
    del saved["state"][0][left]
    with pytest.raises(ValueError, match=f"lacks the state '{left}'"):
        FusedAdafactor(clones(params)).load_state_dict(saved)


@pytest.mark.parametrize("backend", KERNELS)
@pytest.mark.parametrize("shape", [(3, 20), (40, 150), (400, 90), (150, 40, 3), (600, 20)])
def test_one_infinite_gradient_is_found_wherever_it_lies(backend, shape):
    """In a lane and in what is left over, in rows that one thread or a whole block reads."""
    for at in (0, -1):
        made = torch.randn(shape)
        params = [(made.permute(1, 2, 0) if len(shape) == 3 else made).requires_grad_()]
        optimizer = FusedAdafactor(params, backend=backend, clip_grad_norm=float("inf"))
        scaler = GradScaler(place.device, init_scale=2.0)
        scaler.scale(torch.ones(()))
        set_grads(params, make_grads(params))
        params[0].grad.flatten()[at] = float("inf")
        params[0].grad[tuple((n - 1) * -at for n in params[0].shape)] = float("inf")
        before = params[0].detach().clone()
        scaler.step(optimizer)
        scaler.update()
        assert torch.equal(before, params[0].detach())
        assert bool(optimizer.skipped)


@pytest.mark.parametrize("backend", KERNELS)
def test_the_norm_is_of_those_who_take_part(backend):
    params = [torch.randn(shape).requires_grad_() for shape in ((5000, 10), (100, 20), (40,))]
    optimizer = FusedAdafactor(params, backend=backend, clip_grad_norm=1.0)
    for absent in (None, 1, 0):
        set_grads(params, make_grads(params))
        if absent is not None:
            params[absent].grad = None
        grads = [p.grad.flatten().double() for p in params if p.grad is not None]
        expected = torch.linalg.vector_norm(torch.cat(grads)).float()
        optimizer.step()
        torch.testing.assert_close(optimizer.grad_norm, expected)


@pytest.mark.parametrize("backend", KERNELS)
def test_vectors_of_two_dtypes_are_stepped_apart(backend):
    ends = []
    for together in (True, False):
        torch.manual_seed(0)
        params = matrices(False, torch.bfloat16)[:3]
        grouped = [params] if together else [[p] for p in params]
        optimizers = [FusedAdafactor(of, backend=backend) for of in grouped]
        states = {}
        for step in range(3):
            set_grads(params, make_grads(params))
            for optimizer in optimizers:
                optimizer.step()
                states.update(optimizer.state)
            if step == 0:
                for name in ("row_var", "col_var"):
                    states[params[0]][name] = states[params[0]][name].float()
        vectors = [states[p][name] for p in params for name in ("row_var", "col_var")]
        assert [v.dtype for v in vectors] == [torch.float32] * 2 + [torch.bfloat16] * 4
        ends.append([*params, *vectors])
    assert_equal(*ends)


@pytest.mark.parametrize(
    "change",
    [torch.Tensor.double, lambda v: torch.stack([v, v], -1)[..., 0], torch._neg_view],
    ids=["wide", "spread", "negated"],
)
def test_vectors_of_one_without_a_gradient_stay_as_they_are(change):
    params = matrices(False)[:3]
    optimizer = FusedAdafactor(params, backend="cpu")
    train([(optimizer, params)], 1, 1)
    given = change(optimizer.state[params[1]]["row_var"])
    optimizer.state[params[1]]["row_var"] = given
    params[1].grad = None
    optimizer.step()
    assert optimizer.state[params[1]]["row_var"] is given
