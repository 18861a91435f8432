"""A step of one large tensor for each case, in their order: what ncu looks at.

python -m benchmarks.gpu.profiled ELEMENTS [--played]
"""

from __future__ import annotations

import sys
from itertools import product
from typing import Any

import torch

from benchmarks.gpu.phase import gpu_of
from spectramind_fused.optim import OPTIMIZERS

Case = tuple[str, str, str, str]  # backend, dtype, program, optimizer
TAIL = {"lookahead_k": 1, "ema_decay": 0.9, "clip_grad_norm": 1.0, "zero_grads": True}
KERNELS = {"step": ("advance", "update"), "tail": ("norm", "advance", "update")}


def cases(gpu: Any) -> list[Case]:
    """What is stepped, once each; two of them where it is played."""
    every = list(product(gpu.backends(), ("float32", "bfloat16"), ("step", "tail"), ("AdamW",)))
    others = [kind for kind, i in OPTIMIZERS.items() if kind != "AdamW" and not i.of_matrices]
    every += product(gpu.backends(), ("float32",), ("step",), others)
    return gpu.pick(every, every[:2])  # type: ignore[no-any-return]


def step(gpu: Any, case: Case, elements: int) -> torch.Tensor:
    """Takes it; returns the parameter."""
    backend, dtype, program, kind = case
    param = torch.ones(elements, device=gpu.device, dtype=getattr(torch, dtype))
    param.requires_grad_()
    param.grad = torch.full_like(param, 1e-3)
    options = {**OPTIMIZERS[kind].usual, **(TAIL if program == "tail" else {})}
    OPTIMIZERS[kind].cls([param], backend=backend, **options).step()
    gpu.synchronize()
    return param


def main(words: list[str]) -> None:
    """As typed."""
    gpu = gpu_of(words)
    for case in cases(gpu):
        step(gpu, case, int(words[0]))
        gpu.free()


if __name__ == "__main__":
    main(sys.argv[1:])
