"""Gradients of every kind: absent, lying anyhow, not finite, sparse, complex."""

import weakref

import pytest
import torch

from tests.reference import (
    BACKENDS,
    CLASSES,
    VARIANTS,
    assert_equal,
    clones,
    close,
    make_grads,
    make_params,
    name_of,
    set_grads,
    train,
)

SHAPES = [(), (0,), (17,), (1025,)]


def sparse_gradient():
    return torch.sparse_coo_tensor([[1]], [[1.0, 2.0]], (4, 2), check_invariants=True)


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
        assert "eager for 2 of 3 parameters" in ours.backends()["cpu"]


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


@pytest.mark.parametrize("kind", ["Adam", "AdamW"])
def test_sparse_gradients_are_refused_before_anything_moves(kind):
    params = make_params([(4, 2), (3,)])
    optimizer = CLASSES[kind][0](params)
    set_grads(params, make_grads(params))
    params[0].grad = sparse_gradient()
    before = clones(params)
    with pytest.raises(RuntimeError, match=r"sparse gradients; torch\.optim\.SparseAdam"):
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
