"""How the C++ kernels widen and round 16-bit values: every value, and every edge."""

import pytest
import torch

from spectramind_fused import FusedSGD


def every_value(dtype):
    return torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)


def step(values, grads, lr, size):
    """Of parameters of that size: from 64 elements on float16 goes by the processor's own way."""
    params = [part.clone().requires_grad_() for part in values.split(size)]
    for p, grad in zip(params, grads.split(size), strict=True):
        p.grad = grad.clone()
    FusedSGD(params, lr=lr, backend="cpu").step()
    return torch.cat([p.detach() for p in params])


sizes = pytest.mark.parametrize("size", [2**16, 63])


@sizes
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_every_16_bit_value_survives_a_step_of_lr_0(dtype, size):
    values = every_value(dtype)
    values = values[values.isfinite()]
    assert torch.equal(step(values, torch.zeros_like(values), 0.0, size), values)


@sizes
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_every_sum_is_rounded_to_nearest_even_like_torch(dtype, size):
    """Pairs of arbitrary bit patterns: halfway cases, subnormals, overflow, inf and NaN."""
    values = every_value(dtype)
    for seed in range(20 if size > 63 else 4):
        torch.manual_seed(seed)
        others = values[torch.randperm(len(values))]
        if seed % 2:  # neighbours in exponent, where halfway cases are frequent
            others = values.roll(seed * 64)
        expected = (values.float() + (-1.0) * others.float()).to(dtype)
        actual = step(values, others, 1.0, size)
        assert torch.equal(actual.isnan(), expected.isnan())
        number = ~expected.isnan()
        assert torch.equal(actual[number].view(torch.int16), expected[number].view(torch.int16))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_neighbours_of_every_tail_length_are_left_alone(dtype):
    """Around a block and a chunk, at every offset: only the parameter's elements change."""
    for size in [*range(34), 1023, 1024, 1025, 16383, 16384, 16385]:
        for offset in (0, 1, 3):
            base = torch.full((size + 40,), 7.0, dtype=dtype)
            param = base[16 + offset : 16 + offset + size].requires_grad_()
            param.grad = torch.ones_like(param)
            FusedSGD([param], lr=1.0, momentum=0.9, backend="cpu").step()
            assert (param == 6).all()
            assert (base[: 16 + offset] == 7).all()
            assert (base[16 + offset + size :] == 7).all()
