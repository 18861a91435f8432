"""Triton, CUDA C++ and C++ on the CPU give the same bits, from the same numbers."""

import pytest
import torch

from spectramind_fused import GradScaler
from tests import place
from tests.asserts import assert_equal
from tests.backends import GPU_KERNELS
from tests.inputs import make_grads, make_params, set_grads
from tests.oracle import CLASSES, RICHEST

TAIL = {"lookahead_k": 2, "ema_decay": 0.9, "clip_grad_norm": 1.0, "zero_grads": True}
SHAPES = [(), (0,), (17,), (1025,), (9000,)]


def stepped(kind, backend, params, given):
    """Four steps of the whole tail, the second skipped; everything that they left."""
    device = params[0].device.type
    with torch.device(device):
        return _stepped(kind, backend, params, given, device)


def _stepped(kind, backend, params, given, device):
    optimizer = CLASSES[kind][0](params, backend=backend, **TAIL, **RICHEST[kind])
    scaler = GradScaler(device, init_scale=4.0)
    seen = []
    for step, grads in enumerate(given):
        scaler.scale(torch.ones((), device=device))
        grads = [g.to(device) * scaler.get_scale() for g in grads]
        if step == 1:
            grads[3][7] = float("nan")
        set_grads(params, grads)
        scaler.step(optimizer)
        scaler.update()
        seen += [optimizer.grad_norm, torch.tensor(scaler.get_scale(), device="cpu")]
    states = [t for p in params for t in optimizer.state[p].values()]
    return [*params, *states, *(p.grad for p in params), *seen]


@pytest.mark.parametrize("backend", GPU_KERNELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", RICHEST)
def test_a_gpu_gives_the_bits_of_a_cpu(kind, dtype, backend):
    torch.manual_seed(0)
    params = make_params(SHAPES, dtype)
    given = [make_grads(params) for _ in range(4)]
    there = [p.detach().to(place.device, copy=True).requires_grad_() for p in params]
    here = [p.detach().to("cpu", copy=True).requires_grad_() for p in params]
    found, expected = stepped(kind, backend, there, given), stepped(kind, "cpu", here, given)
    assert_equal(found, expected)
    assert found[0].device.type == place.device
