"""Every other class of torch.optim: torch's own step, with ours around it.

`from spectramind_fused.optim.unfused import SparseAdam` gives torch's SparseAdam with clipping,
Lookahead, averages and scaled gradients, stepped eagerly. The classes are made when asked for.
"""

from __future__ import annotations

import inspect

import torch

from spectramind_fused.optim.base import FusedStep
from spectramind_fused.optim.registry import OPTIMIZERS

NAMES = tuple(
    name
    for name, value in vars(torch.optim).items()
    if inspect.isclass(value)
    and issubclass(value, torch.optim.Optimizer)
    and name not in ("Optimizer", *OPTIMIZERS)
    and name != "LBFGS"  # runs the model several times per step
)


def __getattr__(name: str) -> type[FusedStep]:
    if name in OPTIMIZERS and OPTIMIZERS[name].in_torch:
        return OPTIMIZERS[name].cls  # most were here before they had kernels
    if name not in NAMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    torch_class = getattr(torch.optim, name)
    doc = f"`torch.optim.{name}` with clipping, Lookahead and averages; its step is torch's own."
    members = {"__module__": __name__, "__doc__": doc}
    cls = type(name, (FusedStep, torch_class), members)
    globals()[name] = cls  # made once, and found by pickle
    return cls
