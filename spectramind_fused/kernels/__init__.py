"""The backends: each runs the launches of a step, two or three, over the same tables."""

from __future__ import annotations

from spectramind_fused.kernels.backend import Backend
from spectramind_fused.kernels.cpu import CpuBackend
from spectramind_fused.kernels.cuda import CudaBackend
from spectramind_fused.kernels.triton import TritonBackend

__all__ = ["BACKENDS", "Backend"]

# In the order in which backend="auto" tries them.
BACKENDS: dict[str, Backend] = {
    "triton": TritonBackend(),
    "cuda": CudaBackend(),
    "cpu": CpuBackend(),
}
