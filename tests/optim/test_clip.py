"""clip_grad_norm: the norm in one pass, the clipping in the step, `.grad` as it was."""

import math

import pytest
import torch

from spectramind_fused.multi_tensor import PIECE
from spectramind_fused.stepping.norm import NormPass
from spectramind_fused.stepping.shards import Sharding
from tests.asserts import TORCHS_ULPS, Magnitudes, assert_equal, assert_within_ulps
from tests.backends import BACKENDS, GPU_KERNELS, KERNELS
from tests.inputs import clones, give, make_grads, make_params
from tests.oracle import CLASSES, Reference, total_norm
from tests.pairs import BesideReference

SHAPES = [(), (0,), (17,), (1025,), (9000,)]
KINDS = [
    ("AdamW", {"lr": 1e-2, "maximize": True}),
    ("SGD", {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.1}),
]


@pytest.mark.interpreted
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("backend", KERNELS)
@pytest.mark.parametrize(("kind", "options"), KINDS)
def test_kernels_equal_the_reference_bit_for_bit(kind, options, backend, dtype):
    params = make_params(SHAPES, dtype)
    both = BesideReference(kind, params, backend, clip_grad_norm=30.0, **options)
    for step in range(5):
        grads = both.step([g * (0.01 if step % 2 else 1) for g in make_grads(params)])
        assert_equal([p.grad for p in params], grads)
        norm = total_norm(grads)
        assert (norm > 30) == (step % 2 == 0)  # clipped on every other step
        assert both.optimizer.grad_norm.item() == pytest.approx(norm, rel=1e-6)
    both.check()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("kind", "options"), KINDS)
def test_equals_torchs_clip_followed_by_torchs_step(kind, options, backend, dtype):
    """Given our norm, which is exact: torch's own is some 10 ulp off, and looked at apart."""
    if backend in GPU_KERNELS and dtype == torch.float64:
        return
    params = make_params(SHAPES, dtype)
    torchs = clones(params)
    optimizer = CLASSES[kind][0](params, clip_grad_norm=1.0, backend=backend, **options)
    theirs = CLASSES[kind][1](torchs, foreach=False, **options)
    sizes = Magnitudes()
    for _ in range(10):
        grads = make_grads(params)
        give(grads, params, torchs)
        optimizer.step()
        norm = optimizer._grad_norm.to(dtype)
        assert optimizer._grad_norm.item() == pytest.approx(total_norm(grads), rel=1e-14)
        torch.testing.assert_close(torch.nn.utils.get_total_norm(grads), norm, rtol=1e-5, atol=0)
        torch.nn.utils.clip_grads_with_norm_(torchs, 1.0, norm)
        theirs.step()
        sizes.see(torchs)
    assert_within_ulps(params, torchs, sizes.largest, TORCHS_ULPS)


@pytest.mark.parametrize("backend", BACKENDS)
def test_one_norm_over_all_dtypes_layouts_and_buckets(backend):
    """Kernels and torch's own step share the work; both clip by the norm of all."""
    torch.manual_seed(1)
    base = torch.randn(6, 8)
    params = [
        torch.randn(3000),
        torch.randn(40, dtype=torch.bfloat16),
        torch.randn(30, dtype=torch.float64),
        base[:, ::2],  # gaps
        torch.randn(5, dtype=torch.complex64),
        torch.randn(4, 2),  # with a sparse gradient
        torch.randn(8, 3),  # with an expanded one
    ]
    name = "auto" if backend == "cpu" else backend
    if backend in GPU_KERNELS:  # serves neither float64 nor what needs eager, when it is named
        params = params[:2]
    params = [p.requires_grad_() for p in params]
    twins = clones(params)
    torchs = clones(params)
    optimizer = CLASSES["SGD"][0](params, lr=0.5, clip_grad_norm=2.0, backend=name)
    twin = CLASSES["SGD"][0](twins, lr=0.5, clip_grad_norm=math.inf, backend=name)
    theirs = CLASSES["SGD"][1](torchs, lr=0.5)
    for _ in range(3):
        grads = [torch.randn_like(p) for p in params]
        if len(grads) > 5:
            parts = torch.tensor([[0, 0, 3]]), torch.randn(3, 2)
            grads[5] = torch.sparse_coo_tensor(*parts, (4, 2))
            grads[6] = torch.randn(8, 1).expand(8, 3)
        norm = math.sqrt(sum(float(g.to_dense().abs().double().square().sum()) for g in grads))
        for p, w, t, g in zip(params, twins, torchs, grads, strict=True):
            p.grad, w.grad, t.grad = g, g, g * (2 / (norm + 1e-6))
        optimizer.step()
        twin.step()
        theirs.step()
        assert norm > 2
        assert optimizer.grad_norm.item() == pytest.approx(norm, rel=1e-6)
        assert twin.grad_norm.item() == pytest.approx(norm, rel=1e-6)
    for p, t in zip(params, torchs, strict=True):
        torch.testing.assert_close(p, t)
    if backend == "cpu":
        assert "torch for 2 of 7" in optimizer.backends()["cpu"]


@pytest.mark.parametrize("backend", BACKENDS)
def test_finite_gradients_of_any_size_have_a_finite_norm(backend):
    """Their squares do not fit float32: torch's norm is inf there, and its gradients become 0."""
    params = make_params([(2000,)], torch.bfloat16)
    expected = clones(params)
    optimizer = CLASSES["SGD"][0](params, lr=0.1, clip_grad_norm=1.0, backend=backend)
    reference = Reference("SGD", expected, lr=0.1, clip_grad_norm=1.0)
    grads = [g * 1e30 for g in make_grads(params)]
    give(grads, params, expected)
    optimizer.step()
    reference.step()
    assert optimizer.grad_norm.item() == pytest.approx(total_norm(grads), rel=1e-6)
    assert optimizer.grad_norm.isfinite()
    assert_equal(params, expected)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("backend", BACKENDS)
def test_without_a_scaler_bad_gradients_do_what_they_do_in_torch(backend, bad):
    params = make_params([(17,), (5,)])
    torchs = clones(params)
    optimizer = CLASSES["SGD"][0](params, lr=0.1, clip_grad_norm=1.0, backend=backend)
    theirs = CLASSES["SGD"][1](torchs, lr=0.1)
    grads = make_grads(params)
    grads[0][3] = bad
    give(grads, params, torchs)
    optimizer.step()
    torch.nn.utils.clip_grad_norm_(torchs, 1.0)
    theirs.step()
    for p, t in zip(params, torchs, strict=True):
        torch.testing.assert_close(p, t, equal_nan=True)
    assert not optimizer.grad_norm.isfinite()


@pytest.mark.parametrize("backend", BACKENDS)
def test_it_may_be_changed_and_measured_without_clipping(backend):
    params = make_params(SHAPES)
    twins = clones(params)
    optimizer = CLASSES["AdamW"][0](params, backend=backend)
    plain = CLASSES["AdamW"][0](twins, backend=backend)
    assert optimizer.grad_norm is None
    seen = []
    for max_norm in (None, math.inf, math.inf, 1e9, None):
        optimizer.clip_grad_norm = max_norm
        grads = make_grads(params)
        give(grads, params, twins)
        optimizer.step()
        plain.step()
        if max_norm is not None:
            seen.append((optimizer.grad_norm, total_norm(grads)))
    assert_equal(params, twins)
    for norm, expected in seen:  # none is overwritten by a later step
        assert norm.shape == ()
        assert norm.item() == pytest.approx(expected, rel=1e-6)
    assert plain.grad_norm is None


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_step_without_any_gradient_is_no_step(backend):
    params = make_params(SHAPES)
    before = clones(params)
    optimizer = CLASSES["AdamW"][0](params, clip_grad_norm=1.0, backend=backend)
    optimizer.step()
    assert_equal(params, before)
    assert optimizer.grad_norm.item() == 0


@pytest.mark.parametrize("bad", [0, -1.0, math.nan])
def test_a_norm_that_cannot_be_is_refused(bad):
    with pytest.raises(ValueError, match=r"Invalid clip_grad_norm .* above 0, or None"):
        CLASSES["AdamW"][0](make_params([(3,)]), clip_grad_norm=bad)
    optimizer = CLASSES["AdamW"][0](make_params([(3,)]), clip_grad_norm=1.0)
    with pytest.raises(ValueError, match="Invalid clip_grad_norm"):
        optimizer.clip_grad_norm = bad
    assert optimizer.clip_grad_norm == 1.0


@pytest.mark.parametrize(
    "ours", [{"clip_grad_norm": 1.0}, {"ema_decay": 0.9}, {"zero_grads": True}, {"lookahead_k": 2}]
)
def test_a_differentiable_step_takes_none_of_this(ours):
    (name,) = ours
    with pytest.raises(ValueError, match=f"{name} cannot be combined with differentiable=True"):
        CLASSES["SGD"][0](make_params([(3,)]), lr=0.1, differentiable=True, **ours)


@pytest.mark.cpu
def test_the_result_does_not_depend_on_the_number_of_threads():
    params = make_params([(100003,), (5,), *[(300,)] * 50])
    grads = make_grads(params)
    runs = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        twins = clones(params)
        optimizer = CLASSES["AdamW"][0](twins, clip_grad_norm=1.0, ema_decay=0.9, backend="cpu")
        for _ in range(3):
            give(grads, twins)
            optimizer.step()
        runs.append([*twins, optimizer._grad_norm])
    torch.set_num_threads(2)
    assert_equal(*runs)


@pytest.mark.cpu
def test_every_device_learns_of_the_gradients_elsewhere():
    """Two devices and an eager gradient; torch's CPUs of several numbers play the devices."""
    first, second = torch.device("cpu"), torch.device("cpu", 1)
    params = [torch.ones(2 * PIECE), torch.ones(1), torch.ones(0), torch.ones(2 * PIECE + 1)]
    norm = NormPass(params, [first, second], [])
    assert norm.first_rows == [0, 2, 3, 3]
    assert len(norm.reductions[first].partials) == 6
    assert len(norm.reductions[second].partials) == 0  # torch says "cpu" of every one of its CPUs
    norm._rows[second, Sharding.of(params[0])] = (0, 1)
    norm.reductions[second].partials = there = torch.tensor([[32.0, 1.0]])
    here = norm.reductions[first].partials
    for elsewhere, expected in (([], [63, 1]), ([torch.tensor([8.0]), torch.ones(0)], [127, 1])):
        here[:5, 0] = torch.tensor([1.0, 2.0, 4.0, 8.0, 16.0])
        total = norm.combine(elsewhere, None)
        assert total.tolist() == expected
        assert all(r.sums.sum(0).tolist() == expected for r in norm.reductions.values())
    assert there.tolist() == [[32.0, 1.0]]


@pytest.mark.cpu
def test_what_adds_nothing_to_the_norm_changes_no_bit_of_it():
    """A bucket whose parameters take no part, beside gradients that torch steps."""
    whole = Sharding.of(torch.ones(1))
    norm = NormPass([torch.ones(1)], [], [])
    for _ in range(50):
        parts = list(torch.rand(5, 2, dtype=torch.float64))
        zero = torch.zeros(2, dtype=torch.float64)
        with_zeros = [parts[0], zero, *parts[1:3], zero, *parts[3:]]
        totals = [norm._over_ranks({whole: list(p)}, None) for p in (parts, with_zeros)]
        assert torch.equal(*totals)
