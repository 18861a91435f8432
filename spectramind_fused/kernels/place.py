"""Where a launch goes: a GPU, and the stream of it that is current."""

from __future__ import annotations

import contextlib
from typing import Any

import torch

_HERE = contextlib.nullcontext()


def on(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Makes `device` the current one, if it is not."""
    if device.type == "cpu":
        return _HERE
    if device.type == "cuda" and device.index == torch._C._cuda_getDevice():  # type: ignore[attr-defined]
        return _HERE
    return torch.get_device_module(device).device(device)  # type: ignore[no-any-return]


def stream(device: torch.device) -> int | None:
    """The number of the current stream; None of what torch calls otherwise than "cuda"."""
    if device.type != "cuda":
        return None
    return int(torch._C._cuda_getCurrentRawStream(device.index))  # type: ignore[attr-defined]
