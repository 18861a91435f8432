"""Which GPUs compute much in float64."""

from __future__ import annotations

import functools

import torch

# By compute capability, of 8.0 and later: A100, H100 and H200, B200. All others have one float64
# unit for 32 or 64 of float32 (CUDA C++ Programming Guide, arithmetic instructions), B300 among
# them: a sum of squares in 16 bits would wait for it rather than for the memory.
_FAST = {(8, 0), (9, 0), (10, 0)}


@functools.cache
def float64_is_slow(device: torch.device) -> bool:
    """Whether the norm of gradients is better summed in pairs of float32."""
    if device.type != "cuda" or torch.version.hip:
        return False
    return torch.cuda.get_device_capability(device) not in _FAST
