"""Which GPUs compute much in float64."""

from __future__ import annotations

import functools

import torch

# By compute capability, of 8.0 and later: A100, H100 and H200, B200. The others compute some 60
# times as much in float32 (an L40S 91.6 TFLOPS beside 1.4, a B300 75 beside 1.25): a sum of squares
# in 16 bits would wait for float64 rather than for the memory.
_FAST = {(8, 0), (9, 0), (10, 0)}


@functools.cache
def float64_is_slow(device: torch.device) -> bool:
    """Whether the norm of gradients is better summed in pairs of float32."""
    if device.type != "cuda" or torch.version.hip:
        return False
    return torch.cuda.get_device_capability(device) not in _FAST
