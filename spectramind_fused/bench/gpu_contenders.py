"""Who else steps on GPUs: libraries that are timed there, each where it is installed."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from spectramind_fused.bench.contenders import LOOP, PEERS, Contender, Unavailable, torchs
from spectramind_fused.optim import OPTIMIZERS

Build = Callable[[str, list[Tensor]], Optimizer]


def _adam_of(
    package: str, module: str, names: dict[str, str], options: Callable[[Tensor], dict[str, Any]]
) -> Build:
    """Builds a library's Adam or AdamW, or says why there is none.

    Args:
        package: what is installed.
        module: where its classes are.
        names: of its class, by the kind.
        options: its own, for parameters like the first.
    """

    def build(kind: str, params: list[Tensor]) -> Optimizer:
        if kind not in names:
            raise Unavailable(f"{package} has no {kind} with these options")
        if not params[0].is_cuda:
            raise Unavailable(f"{package} steps GPU tensors only")
        try:
            version(package)
        except PackageNotFoundError:
            raise Unavailable(f"{package} is not installed") from None
        own = options(params[0])
        if names[kind].startswith("Fused"):  # one class for both
            own["adam_w_mode"] = kind == "AdamW"
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                cls = getattr(importlib.import_module(module), names[kind])
                made: Optimizer = cls(params, **OPTIMIZERS[kind].usual, **own)
        except Exception as error:  # built for another torch, another GPU, other arguments
            raise Unavailable(f"{package}: {type(error).__name__}: {error}") from error
        return made

    return build


def _nothing(like: Tensor) -> dict[str, Any]:
    return {}


def _states_like(like: Tensor) -> dict[str, Any]:
    return {"exp_avg_dtype": like.dtype, "exp_avg_sq_dtype": like.dtype}


_BOTH = {"Adam": "FusedAdam", "AdamW": "FusedAdam"}
# Torch's foreach step takes more operators where it can be captured: both are timed. Its loop is
# not: nobody gets it on a GPU unasked, and its thousands of launches fill the driver's queue, so
# that no clock can tell its host's time. What the states of the last three take up is their own
# affair, so no bytes are stated.
GPU_PEERS = (
    Contender("torch, foreach", "torch", torchs(foreach=True, capturable=False)),
    Contender("torch, foreach, capturable", "torch", torchs(foreach=True), capturable=True),
    *(p for p in PEERS if p.package == "torch" and p.name not in ("torch, foreach", LOOP)),
    *(p._replace(name="optimi, triton") for p in PEERS if p.package == "torch-optimi"),
    Contender("apex", "apex", _adam_of("apex", "apex.optimizers", _BOTH, _nothing), one_pass=True),
    Contender(
        "TransformerEngine",
        "transformer-engine",
        _adam_of(
            "transformer-engine", "transformer_engine.pytorch.optimizers", _BOTH, _states_like
        ),
        one_pass=True,
    ),
    Contender(
        "bitsandbytes, 32 bits",
        "bitsandbytes",
        _adam_of(
            "bitsandbytes",
            "bitsandbytes.optim",
            {"Adam": "Adam32bit", "AdamW": "AdamW32bit"},
            _nothing,
        ),
        unknown_bytes=True,
    ),
    Contender(
        "flashoptim",
        "flashoptim",
        _adam_of(
            "flashoptim", "flashoptim", {"Adam": "FlashAdam", "AdamW": "FlashAdamW"}, _nothing
        ),
        unknown_bytes=True,
    ),
    Contender(
        "torchao, 8 bits",
        "torchao",
        _adam_of("torchao", "torchao.optim", {"Adam": "Adam8bit", "AdamW": "AdamW8bit"}, _nothing),
        unknown_bytes=True,
    ),
)
