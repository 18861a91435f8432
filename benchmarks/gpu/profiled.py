"""A few steps of a large tensor: what ncu looks at.

python -m benchmarks.gpu.profiled BACKEND DTYPE PROGRAM ELEMENTS [--played]
"""

from __future__ import annotations

import sys
from typing import Any

import torch

from benchmarks.gpu.phase import gpu_of
from spectramind_fused import FusedAdamW

STEPS = 3  # the last is looked at: the first makes states, the third syncs
TAIL = {"lookahead_k": 3, "ema_decay": 0.9, "clip_grad_norm": 1.0, "zero_grads": True}


def steps(gpu: Any, backend: str, dtype: str, program: str, elements: int) -> torch.Tensor:
    """Takes them; returns the parameter."""
    param = torch.randn(elements, device=gpu.device, dtype=getattr(torch, dtype))
    param.requires_grad_()
    param.grad = torch.randn_like(param)
    optimizer = FusedAdamW([param], backend=backend, **(TAIL if program == "tail" else {}))
    for _ in range(STEPS):
        optimizer.step()
    gpu.synchronize()
    return param


def main(words: list[str]) -> None:
    """As typed."""
    backend, dtype, program, elements = words[:4]
    steps(gpu_of(words), backend, dtype, program, int(elements))


if __name__ == "__main__":
    main(sys.argv[1:])
