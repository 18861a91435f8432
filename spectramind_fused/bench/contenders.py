"""Who is timed: our classes, torch's in each of their forms, and other libraries' where installed.

A contender builds an optimizer; a program (`programs.py`) makes a step of it.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim import Optimizer

from spectramind_fused.optim import OPTIMIZERS, FusedStep
from spectramind_fused.version import __version__

LOOP = "torch, for-loop"
COMPILES_UP_TO = 200  # tensors: of 500 a compile takes two minutes, of 2,000 far more


class Unavailable(Exception):
    """Why a contender does not take part, as a sentence."""


class Contender(NamedTuple):
    """One way to step.

    Attributes:
        name: as tables say it.
        package: whose version is recorded.
        build: gives an optimizer of a kind for parameters, or raises Unavailable.
        one_pass: torch's operators do not show what it moves, which is taken to be one pass.
        compiled: `step` is to be compiled.
        capturable: it can be recorded in a CUDA graph.
        unknown_bytes: how much it moves is not stated: its states are its own affair.
    """

    name: str
    package: str
    build: Callable[[str, list[Tensor]], Optimizer]
    one_pass: bool = False
    compiled: bool = False
    capturable: bool = False
    unknown_bytes: bool = False

    def version(self) -> str:
        """Of its package; of ours also where it runs from its sources, uninstalled."""
        return __version__ if self.package == "spectramind-fused" else version(self.package)


def ours(kind: str, params: list[Tensor], **extras: Any) -> FusedStep:
    """Our class of a kind."""
    info = OPTIMIZERS[kind]
    return info.cls(info.groups_of(params), **info.usual, **extras)


def torchs(**flags: bool) -> Callable[[str, list[Tensor]], Optimizer]:
    """Builds torch's own class of a kind; on a GPU one that can be captured, unless told not to."""

    def build(kind: str, params: list[Tensor]) -> Optimizer:
        info = OPTIMIZERS[kind]
        if not info.in_torch:
            raise Unavailable(f"torch.optim has no {kind}")
        cls = info.cls.algorithm.torch_class
        known = inspect.signature(cls).parameters
        if info.of_matrices:  # torch's code for each group: how is a matter of the rest's
            made: Optimizer = cls(info.groups_of(params, **flags), **info.usual)
            return made
        if flags.get("fused") and "fused" not in known:
            raise Unavailable(f"torch.optim has no fused {kind}")
        asked = {"capturable": params[0].is_cuda, **flags}
        options: dict[str, Any] = {**info.usual, **{k: v for k, v in asked.items() if k in known}}
        return cls(params, **options)

    return build


def _compiled(kind: str, params: list[Tensor]) -> Optimizer:
    if len(params) > COMPILES_UP_TO:
        raise Unavailable(f"torch.compile takes minutes for more than {COMPILES_UP_TO} tensors")
    return torchs(foreach=True)(kind, params)


def _deepspeed(kind: str, params: list[Tensor]) -> Optimizer:
    if params[0].device.type != "cpu" or "deepspeed" not in OPTIMIZERS[kind].also_in:
        raise Unavailable(f"DeepSpeed has no {kind} for {params[0].device.type} tensors")
    _need("deepspeed")
    from deepspeed.ops.adam import DeepSpeedCPUAdam
    from deepspeed.ops.lion import DeepSpeedCPULion

    # States in the parameter's dtype, as everybody else's.
    options = {**OPTIMIZERS[kind].usual, "fp32_optimizer_states": False}
    if kind == "Lion":
        made: Optimizer = DeepSpeedCPULion(params, **options)
    else:
        made = DeepSpeedCPUAdam(params, adamw_mode=kind == "AdamW", **options)
    return made


def _optimi(kind: str, params: list[Tensor], kahan: bool = False) -> Optimizer:
    if kahan and params[0].dtype == torch.float32:
        raise Unavailable("Kahan's sum is for 16-bit parameters")
    if "torch-optimi" not in OPTIMIZERS[kind].also_in:
        raise Unavailable(f"optimi has no {kind} with these options")
    _need("torch-optimi")
    import optimi

    on_gpu = params[0].is_cuda
    how = {"triton": True} if on_gpu else {"foreach": True, "triton": False}
    options = {**OPTIMIZERS[kind].usual, **how, "kahan_sum": kahan}
    made: Optimizer = getattr(optimi, kind)(params, **options)
    return made


def _pytorch_optimizer(kind: str, params: list[Tensor]) -> Optimizer:
    if "pytorch-optimizer" not in OPTIMIZERS[kind].also_in:
        raise Unavailable(f"pytorch_optimizer's {kind} is no other than torch's")
    _need("pytorch-optimizer")
    import pytorch_optimizer

    usual = OPTIMIZERS[kind].usual
    made: Optimizer = getattr(pytorch_optimizer, kind)(params, **usual, foreach=True)
    return made


def lookahead_of_pytorch_optimizer(inner: Optimizer, k: int, alpha: float) -> Optimizer:
    """pytorch_optimizer's Lookahead around an optimizer.

    Raises:
        Unavailable: it is not installed.
    """
    _need("pytorch-optimizer")
    import pytorch_optimizer

    made: Optimizer = pytorch_optimizer.Lookahead(inner, k=k, alpha=alpha)
    return made


def _need(package: str) -> None:
    try:
        version(package)
    except PackageNotFoundError:
        raise Unavailable(f"{package} is not installed") from None


OURS = Contender("spectramind_fused", "spectramind-fused", ours, one_pass=True, capturable=True)
KAHAN = Contender("optimi, foreach, Kahan", "torch-optimi", partial(_optimi, kahan=True))
WITHOUT_KERNELS = f"{OURS.name}, no kernels"  # what serves where none run
PEERS = (
    Contender(LOOP, "torch", torchs(foreach=False), capturable=True),
    Contender("torch, foreach", "torch", torchs(foreach=True), capturable=True),
    Contender("torch, fused", "torch", torchs(fused=True), capturable=True),
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
