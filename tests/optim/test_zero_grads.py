"""zero_grads: zeros are left in the gradients, where they are."""

import pytest
import torch

import spectramind_fused as ours
from tests import place
from tests.asserts import assert_equal
from tests.backends import BACKENDS
from tests.inputs import clones, give, make_grads, make_params
from tests.oracle import CLASSES

SHAPES = [(), (0,), (17,), (1025,), (9000,)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients_stay_allocated_and_are_zero(backend, dtype):
    params = make_params(SHAPES, dtype)
    twins = clones(params)
    optimizer = CLASSES["AdamW"][0](params, zero_grads=True, backend=backend)
    twin = CLASSES["AdamW"][0](twins, backend=backend)
    give(make_grads(params), params)
    addresses = [p.grad.data_ptr() for p in params]
    for _ in range(3):
        for p, t, grad in zip(params, twins, make_grads(params), strict=True):
            p.grad.add_(grad)  # as backward does, into what it finds there
            t.grad = p.grad.clone()
        versions = [p.grad._version for p in params]
        optimizer.step()
        twin.step()
        assert all(not p.grad.any() for p in params)
        assert [p.grad.data_ptr() for p in params] == addresses
        assert all(p.grad._version > v for p, v in zip(params, versions, strict=True))
    assert_equal(params, twins)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_skipped_step_zeroes_all_the_same(backend):
    params = make_params(SHAPES)
    before = clones(params)
    optimizer = CLASSES["SGD"][0](params, lr=0.1, zero_grads=True, backend=backend)
    scaler = ours.GradScaler(place.device)
    scaler.scale(torch.ones(()))
    give(make_grads(params), params)
    params[2].grad[0] = float("nan")
    scaler.step(optimizer)
    assert_equal(params, before)
    assert all(not p.grad.any() for p in params)


@pytest.mark.parametrize("backend", ["auto", "eager"])
def test_gradients_that_lie_anyhow(backend):
    base = torch.randn(6, 8)
    params = [torch.randn(6, 8).requires_grad_() for _ in range(4)]
    params += [base[:, ::2].requires_grad_(), torch.ones(4, 2).requires_grad_()]
    optimizer = CLASSES["SGD"][0](params, lr=0.1, zero_grads=True, backend=backend)
    bucket = torch.randn(6 * 8 + 2)
    grads = [
        torch.randn(8, 6).t(),
        torch.randn(6, 1).expand(6, 8),
        torch._neg_view(torch.randn(6, 8)),
        bucket[1:-1].view(6, 8),
        torch.randn(6, 4),
        torch.sparse_coo_tensor(torch.tensor([[0, 3]]), torch.ones(2, 2), (4, 2)),
    ]
    ends = bucket[0].item(), bucket[-1].item()
    for p, grad in zip(params, grads, strict=True):
        p.grad = grad
    optimizer.step()
    assert all(not p.grad.to_dense().any() for p in params)
    assert (bucket[0].item(), bucket[-1].item()) == ends
    assert all(p.grad is g for i, (p, g) in enumerate(zip(params, grads, strict=True)) if i != 1)
