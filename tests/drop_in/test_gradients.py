"""Gradients of every kind: absent, lying anyhow, not finite, sparse, complex."""

import copy
import weakref

import pytest
import torch

from tests.asserts import TORCHS_ULPS, assert_equal, assert_within_ulps, close
from tests.backends import BACKENDS, GPU_KERNELS, KERNELS
from tests.inputs import clones, for_kind, make_grads, make_params, set_grads
from tests.oracle import CLASSES, VARIANTS, Reference, name_of
from tests.pairs import train

SHAPES = [(), (0,), (17,), (1025,)]


def sparse_gradient():
    return torch.sparse_coo_tensor([[1]], [[1.0, 2.0]], (4, 2))


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients_may_lie_anyhow(backend):
    """Other strides, expanded, lazily negated, slices of a bucket: the numbers count."""
    params = [torch.randn(6, 8).requires_grad_() for _ in range(5)]
    torchs = clones(params)
    ours = CLASSES["AdamW"][0](params, backend=backend)
    theirs = CLASSES["AdamW"][1](torchs, foreach=False)
    for _ in range(3):
        bucket = torch.randn(6 * 8 + 1)
        grads = [
            torch.randn(8, 6).t(),
            torch.randn(6, 1).expand(6, 8),
            torch._neg_view(torch.randn(6, 8)),
            bucket[1:].view(6, 8),
            torch.randn(6, 16)[:, ::2],
        ]
        for group in (params, torchs):
            for p, grad in zip(group, grads, strict=True):
                p.grad = grad
        ours.step()
        theirs.step()
    close(params, torchs)


@pytest.mark.parametrize("backend", ["auto", "eager"])
def test_parameters_with_gaps_and_complex_ones_are_stepped_by_torch(backend):
    base = torch.randn(6, 8)
    gaps, numbers = base[:, ::2].requires_grad_(), torch.randn(5, dtype=torch.complex64)
    params = [gaps, numbers.requires_grad_(), torch.randn(4).requires_grad_()]
    between = base[:, 1::2].clone()
    torchs = clones(params)
    ours = CLASSES["AdamW"][0](params, backend=backend)
    theirs = CLASSES["AdamW"][1](torchs, foreach=False)
    train([(ours, params), (theirs, torchs)], 1)
    for p, t in zip(params, torchs, strict=True):
        torch.testing.assert_close(p, t)
    assert torch.equal(base[:, 1::2], between)
    if backend == "auto":
        assert "torch for 2 of 3 parameters" in ours.backends()[str(params[0].device)]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("variant", VARIANTS, ids=name_of)
def test_nan_and_inf_gradients_do_what_they_do_in_torch(variant, bad, backend):
    kind, options = variant
    params = make_params([(17,)])
    torchs = clones(params)
    ours = CLASSES[kind][0](params, backend=backend, **options)
    theirs = CLASSES[kind][1](torchs, foreach=False, **options)
    for step in range(3):
        grads = make_grads(params)
        if step == 1:
            for g in grads:
                g[(0,) * g.dim()] = bad
        set_grads(params, grads)
        set_grads(torchs, grads)
        ours.step()
        theirs.step()
    for p, t in zip(params, torchs, strict=True):
        torch.testing.assert_close(p, t, equal_nan=True)


@pytest.mark.parametrize("kind", [k for k in CLASSES if CLASSES[k][0].algorithm.sparse_hint])
def test_sparse_gradients_are_refused_before_anything_moves(kind):
    params = make_params([(4, 2), (3,)])
    optimizer = CLASSES[kind][0](params)
    set_grads(params, make_grads(params))
    params[0].grad = sparse_gradient()
    before = clones(params)
    with pytest.raises(RuntimeError, match=r"sparse gradients; .*SparseAdam"):
        optimizer.step()
    assert_equal(params, before)
    assert not optimizer.state


def test_sparse_gradients_of_sgd_are_stepped_by_torch():
    params, torchs = [torch.ones(4, 2).requires_grad_()], [torch.ones(4, 2).requires_grad_()]
    for optimizer, (p,) in (
        (CLASSES["SGD"][0](params, lr=0.1), params),
        (CLASSES["SGD"][1](torchs, lr=0.1), torchs),
    ):
        for grad in (sparse_gradient(), torch.ones(4, 2)):
            p.grad = grad
            optimizer.step()
    close(params, torchs)


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_gradient_is_kept_alive(backend):
    params = make_params(SHAPES)
    optimizer = CLASSES["AdamW"][0](params, lookahead_k=2, backend=backend)
    for _ in range(3):
        set_grads(params, make_grads(params))
        alive = [weakref.ref(p.grad) for p in params]
        optimizer.step()
        optimizer.zero_grad()
        assert all(grad() is None for grad in alive)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", CLASSES)
def test_each_parameter_counts_its_own_steps(kind, backend):
    """Gradients come and go: bias corrections and Lookahead's syncs follow each one's steps."""
    params = make_params(for_kind(SHAPES, kind))
    alone = clones(params)
    options = {"lr": 0.01, "lookahead_k": 3, "ema_decay": 0.9, "backend": backend}
    together = CLASSES[kind][0](params, **options)
    each = [CLASSES[kind][0]([p], **options) for p in alone]
    for step in range(12):
        grads = make_grads(params)
        for i, (p, a, g) in enumerate(zip(params, alone, grads, strict=True)):
            takes_part = (step + i) % (2 + i % 3) == 0
            p.grad = g if takes_part else None
            a.grad = p.grad
            if takes_part:
                each[i].step()
        together.step()
    assert_equal(params, alone)
    counts = {float(together.state[p]["step"]) for p in params}
    assert len(counts) > 1
    for p, a, optimizer in zip(params, alone, each, strict=True):
        assert_equal(together.state[p].values(), optimizer.state[a].values())


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", CLASSES)
def test_a_gradient_alone_decides_who_takes_part(kind, backend):
    """Not `requires_grad`: what is frozen keeps moving while it holds a gradient, as in torch."""
    params = make_params(for_kind(SHAPES, kind))
    torchs = clones(params)
    ours = CLASSES[kind][0](params, lr=0.01, backend=backend)
    theirs = CLASSES[kind][1](torchs, lr=0.01)
    for p in (*params, *torchs):
        p.requires_grad_(False)
    train([(ours, params), (theirs, torchs)], 1)
    close(params, torchs)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", CLASSES)
@pytest.mark.parametrize("of_grad", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize("of_param", [torch.channels_last, torch.contiguous_format])
def test_memory_formats_may_differ(of_param, of_grad, kind, backend):
    params = [torch.randn(4, 3, 5, 7).to(memory_format=of_param).requires_grad_()]
    torchs = clones(params)
    ours = CLASSES[kind][0](params, lr=0.01, lookahead_k=2, clip_grad_norm=1.0, backend=backend)
    theirs = CLASSES[kind][0](torchs, lr=0.01, lookahead_k=2, clip_grad_norm=1.0, backend="eager")
    for _ in range(3):
        grad = torch.randn(4, 3, 5, 7).to(memory_format=of_grad)
        kept = grad.clone()
        params[0].grad, torchs[0].grad = grad, grad.contiguous()
        ours.step()
        theirs.step()
        assert torch.equal(grad, kept)
        assert grad.is_contiguous(memory_format=of_grad)
    assert params[0].is_contiguous(memory_format=of_param)
    close(params, torchs)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", CLASSES)
@pytest.mark.parametrize(
    ("dtype", "grad_dtype", "torchs_ulps"),
    [(torch.bfloat16, torch.float32, 1), (torch.float32, torch.bfloat16, TORCHS_ULPS)],
)
def test_gradients_of_another_dtype_are_taken_as_they_are(
    dtype, grad_dtype, torchs_ulps, kind, backend
):
    """`grad_dtype` lets 16-bit parameters have float32 gradients: nothing rounds them."""
    params = make_params(for_kind(SHAPES, kind), dtype)
    expected = clones(params)
    lr = 0.01
    ours = CLASSES[kind][0](params, lr=lr, backend=backend)
    reference = Reference(kind, expected, lr=lr)
    for _ in range(3):
        for p, e in zip(params, expected, strict=True):
            p.grad_dtype = e.grad_dtype = grad_dtype
            p.grad = e.grad = torch.randn(p.shape, dtype=grad_dtype)
        ours.step()
        reference.step()
    sizes = [e.detach().double().abs().clamp_min(1.0) for e in expected]
    assert_within_ulps(params, expected, sizes, torchs_ulps if backend == "eager" else 0)


@pytest.mark.parametrize("backend", GPU_KERNELS)
def test_gradients_and_states_of_a_dtype_without_kernels_are_left_to_torch(backend):
    params = make_params(SHAPES)
    twins = clones(params)
    optimizer = CLASSES["AdamW"][0](params, backend=backend)
    twin = CLASSES["AdamW"][0](twins, backend="eager")
    for double in (False, True, True):
        for p, t in zip(params, twins, strict=True):
            p.grad, p.grad_dtype = None, torch.float64 if double else torch.float32
            t.grad = torch.randn(t.shape)
            p.grad = t.grad.to(p.grad_dtype)
        if double:
            optimizer.state[params[2]]["exp_avg"] = optimizer.state[params[2]]["exp_avg"].double()
        optimizer.step()
        twin.step()
        assert len(optimizer.describe_plan().eager) == double * len(params)
    close(params, twins)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", CLASSES)
def test_a_parameter_that_overlaps_itself_is_refused_before_anything_moves(kind, backend):
    """Torch refuses it too, in the middle of the step."""
    params = [torch.ones(4), torch.ones(3, 1).expand(3, 5)]
    params = [p.requires_grad_() for p in params]
    optimizer = CLASSES[kind][0](params, lr=0.01, backend="auto" if backend == "cpu" else backend)
    for p in params:
        p.grad = torch.ones(p.shape)
    before = copy.deepcopy(optimizer.state_dict()["state"])  # Adagrad's is there from the beginning
    with pytest.raises(RuntimeError, match=r"shape \(3, 5\) .* clone"):
        optimizer.step()
    assert_equal(params, [torch.ones(4), torch.ones(3, 5)])
    assert repr(optimizer.state_dict()["state"]) == repr(before)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", CLASSES)
def test_parameters_that_share_memory_are_stepped_one_after_the_other(kind, backend):
    """As in torch: no two threads of a kernel may write to one address."""
    steps = []
    for cls, options in ((0, {"backend": backend}), (1, {"foreach": False})):
        torch.manual_seed(0)
        memory = torch.randn(70000)
        params = [memory[:50000], memory[30000:], torch.randn(5), memory[29000:30001]]
        params = [p.requires_grad_() for p in params]
        optimizer = CLASSES[kind][cls](params, lr=0.01, **options)
        train([(optimizer, params)], 1)
        steps.append([memory.detach(), params[2]])
    close(*steps)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", CLASSES)
def test_neighbours_in_one_buffer_are_served_by_kernels(kind, backend):
    """Views side by side, as in a flat buffer: they touch, and do not overlap."""
    sizes = [size for (size,) in for_kind([(7,), (1000,), (0,), (993,), (1000,)], kind)]
    params = [part.requires_grad_() for part in torch.randn(3000).split(sizes)]
    alone = clones(params)
    optimizers = [CLASSES[kind][0](ps, lr=0.01, backend=backend) for ps in (params, alone)]
    train(list(zip(optimizers, (params, alone), strict=True)), 1)
    assert_equal(params, alone)
    assert bool(optimizers[0].describe_plan().eager) == (backend == "eager")


@pytest.mark.parametrize("backend", ["auto", "eager"])
@pytest.mark.parametrize("kind", [kind for kind in CLASSES if kind not in ("Lion", "Adafactor")])
def test_complex_parameters_are_stepped_by_torch(kind, backend):
    params = [torch.randn(5, dtype=torch.complex64), torch.randn(4)]
    params = [p.requires_grad_() for p in params]
    torchs = clones(params)
    ours = CLASSES[kind][0](params, lr=0.01, lookahead_k=2, lookahead_alpha=1.0, backend=backend)
    theirs = CLASSES[kind][1](torchs, lr=0.01)
    train([(ours, params), (theirs, torchs)], 1)
    torch.testing.assert_close(params, torchs)


def test_complex_parameters_of_lion_are_pairs_of_real_ones():
    pair = torch.randn(5, 2)
    params = [torch.view_as_complex(pair.clone()).requires_grad_()]
    pairs = [pair.requires_grad_()]
    ours = CLASSES["Lion"][0](params, lr=0.01)
    theirs = CLASSES["Lion"][0](pairs, lr=0.01)
    for _ in range(3):
        grad = torch.randn(5, 2)
        params[0].grad, pairs[0].grad = torch.view_as_complex(grad), grad
        ours.step()
        theirs.step()
    assert_equal([torch.view_as_real(params[0].detach())], pairs)


@pytest.mark.parametrize("backend", KERNELS)
@pytest.mark.parametrize("kind", ["AdamW", "Lion"])
def test_infinite_weights_do_not_survive_decoupled_decay(kind, backend):
    """What the README says of them; without decay they stay, as in torch."""
    for decay, kept in ((0.1, False), (0.0, True)):
        params = [torch.tensor([float("inf"), 1.0]).requires_grad_()]
        optimizer = CLASSES[kind][0](params, lr=0.1, weight_decay=decay, backend=backend)
        params[0].grad = torch.ones(2)
        optimizer.step()
        assert (params[0][0] == float("inf")) == kept
        assert params[0][0].isnan() != kept
        assert params[0][1].isfinite()
