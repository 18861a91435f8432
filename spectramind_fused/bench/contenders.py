"""Who is timed: our classes, torch's in each of their forms, and other libraries' where installed.

A contender builds an optimizer; a program (`programs.py`) makes a step of it.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim import Optimizer

import spectramind_fused

# The options each optimizer is timed with, said in full: libraries differ in their defaults.
_ADAM = {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8}
OPTIONS: dict[str, dict[str, Any]] = {
    "AdamW": {**_ADAM, "weight_decay": 0.01},
    "Adam": {**_ADAM, "weight_decay": 0.0},
    "SGD": {"lr": 1e-2, "momentum": 0.9, "nesterov": True},
    "RMSprop": {"lr": 1e-3},
    "Lion": {"lr": 1e-4, "betas": (0.9, 0.99), "weight_decay": 0.01},
}
STATES = {"AdamW": 2, "Adam": 2, "SGD": 1, "RMSprop": 1, "Lion": 1}
COMPILES_UP_TO = 200  # tensors: of 500 a compile takes two minutes, of 2,000 far more


class NotHere(Exception):
    """Why a contender does not take part, as a sentence."""


class Contender(NamedTuple):
    """One way to step.

    Attributes:
        name: as tables say it.
        package: whose version is recorded.
        build: gives an optimizer of a kind for parameters, or raises NotHere.
        one_pass: torch's operators do not show what it moves, which is taken to be one pass.
        compiled: `step` is to be compiled.
        capturable: it can be recorded in a CUDA graph.
    """

    name: str
    package: str
    build: Callable[[str, list[Tensor]], Optimizer]
    one_pass: bool = False
    compiled: bool = False
    capturable: bool = False

    def version(self) -> str:
        """Of its package."""
        return version(self.package)


def ours(kind: str, params: list[Tensor], **extras: Any) -> Optimizer:
    """Our class of a kind."""
    made: Optimizer = getattr(spectramind_fused, f"Fused{kind}")(params, **OPTIONS[kind], **extras)
    return made


def _torchs(**flags: bool) -> Callable[[str, list[Tensor]], Optimizer]:
    def build(kind: str, params: list[Tensor]) -> Optimizer:
        if not hasattr(torch.optim, kind):
            raise NotHere(f"torch.optim has no {kind}")
        if flags.get("fused") and kind == "RMSprop":
            raise NotHere("torch.optim has no fused RMSprop")
        options = {**OPTIONS[kind], **flags}
        if params[0].is_cuda and kind != "SGD":
            options["capturable"] = True
        made: Optimizer = getattr(torch.optim, kind)(params, **options)
        return made

    return build


def _compiled(kind: str, params: list[Tensor]) -> Optimizer:
    if len(params) > COMPILES_UP_TO:
        raise NotHere(f"torch.compile takes minutes for more than {COMPILES_UP_TO} tensors")
    return _torchs(foreach=True)(kind, params)


def _deepspeed(kind: str, params: list[Tensor]) -> Optimizer:
    if params[0].device.type != "cpu" or kind not in ("Adam", "AdamW", "Lion"):
        raise NotHere(f"DeepSpeed has no {kind} for {params[0].device.type} tensors")
    _need("deepspeed")
    from deepspeed.ops.adam import DeepSpeedCPUAdam
    from deepspeed.ops.lion import DeepSpeedCPULion

    # States in the parameter's dtype, as everybody else's.
    options = {**OPTIONS[kind], "fp32_optimizer_states": False}
    if kind == "Lion":
        made: Optimizer = DeepSpeedCPULion(params, **options)
    else:
        made = DeepSpeedCPUAdam(params, adamw_mode=kind == "AdamW", **options)
    return made


def _optimi(kind: str, params: list[Tensor]) -> Optimizer:
    if kind not in ("Adam", "AdamW", "Lion"):
        raise NotHere(f"optimi has no {kind} with these options")
    _need("torch-optimi")
    import optimi

    on_gpu = params[0].is_cuda
    how = {"triton": True} if on_gpu else {"foreach": True, "triton": False}
    made: Optimizer = getattr(optimi, kind)(params, **OPTIONS[kind], kahan_sum=False, **how)
    return made


def _pytorch_optimizer(kind: str, params: list[Tensor]) -> Optimizer:
    if kind != "Lion":
        raise NotHere(f"pytorch_optimizer's {kind} is no other than torch's")
    _need("pytorch-optimizer")
    import pytorch_optimizer

    made: Optimizer = pytorch_optimizer.Lion(params, **OPTIONS[kind], foreach=True)
    return made


def lookahead_of_pytorch_optimizer(inner: Optimizer, k: int, alpha: float) -> Optimizer:
    """pytorch_optimizer's Lookahead around an optimizer.

    Raises:
        NotHere: it is not installed.
    """
    _need("pytorch-optimizer")
    import pytorch_optimizer

    made: Optimizer = pytorch_optimizer.Lookahead(inner, k=k, alpha=alpha)
    return made


def _need(package: str) -> None:
    try:
        version(package)
    except PackageNotFoundError:
        raise NotHere(f"{package} is not installed") from None


OURS = Contender("spectramind_fused", "spectramind-fused", ours, one_pass=True, capturable=True)
PEERS = (
    Contender("torch, for-loop", "torch", _torchs(foreach=False), capturable=True),
    Contender("torch, foreach", "torch", _torchs(foreach=True), capturable=True),
    Contender("torch, fused", "torch", _torchs(fused=True), capturable=True),
    Contender("torch, foreach compiled", "torch", _compiled, one_pass=True, compiled=True),
    Contender("DeepSpeed", "deepspeed", _deepspeed, one_pass=True),
    Contender("optimi, foreach", "torch-optimi", _optimi),
    Contender("pytorch_optimizer", "pytorch-optimizer", _pytorch_optimizer),
)


def compiled_step(optimizer: Optimizer) -> Callable[[], Any]:
    """`optimizer.step`, compiled by torch."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.compile(optimizer.step)
