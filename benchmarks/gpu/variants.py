"""Every kernel variant at small sizes: what compute-sanitizer looks at.

python -m benchmarks.gpu.variants [--played]
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import Any, NamedTuple
from unittest.mock import patch

import torch

from benchmarks.gpu.phase import gpu_of
from spectramind_fused import GradScaler
from spectramind_fused.kernels import cuda, triton
from spectramind_fused.multi_tensor import tables
from spectramind_fused.optim import OPTIMIZERS

# Every rule with every number of states; between them, every hyperparameter of a rule.
RULES = (
    ("AdamW", {}),
    ("Adam", {"amsgrad": True, "weight_decay": 0.1}),
    ("SGD", {"lr": 0.1, "momentum": 0.0, "nesterov": False}),
    ("SGD", {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.1}),
    ("RMSprop", {}),
    ("RMSprop", {"momentum": 0.9}),
    ("RMSprop", {"centered": True}),
    ("RMSprop", {"centered": True, "momentum": 0.9}),
    ("Lion", {}),
    ("NAdam", {"decoupled_weight_decay": True}),
    ("RAdam", {}),
    ("Adagrad", {"lr_decay": 0.1, "weight_decay": 0.1}),
    ("Adamax", {"weight_decay": 0.1}),
    ("Adadelta", {"weight_decay": 0.1}),
    ("ASGD", {"weight_decay": 0.1}),
    ("Rprop", {}),
    ("Muon", {}),
)
TAILS = (
    {},
    {"lookahead_k": 2},
    {"lookahead_k": 2, "ema_decay": 0.9, "clip_grad_norm": 1.0, "zero_grads": True},
)
# What is stored in fewer bits: each storage, in two rules that hold moments of both kinds.
STORED = (
    (torch.float32, {"state_dtype": "int8"}),
    (torch.bfloat16, {"state_dtype": "bfloat16", "stochastic_rounding": True}),
    (torch.bfloat16, {"state_dtype": "int8", "master_weights": "split"}),
    (torch.float16, {"stochastic_rounding": True, "ema_dtype": "bfloat16"}),
    (torch.float16, {"master_weights": "float32"}),
)
SHAPES = ((), (17,), (1025,), (8193,), (3, 5))  # below a block, above a block, above a chunk
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
STEPS = 2  # the second syncs


class Variant(NamedTuple):
    """What is stepped, and by which kernels; `pairs`: a norm without float64."""

    backend: str
    kind: str
    options: dict[str, Any]
    tail: dict[str, Any]
    dtype: torch.dtype
    pairs: bool = False


def variants() -> Iterator[Variant]:
    """All of them, for both backends; 16 bits with the whole tail alone, which has every part."""
    for backend in ("triton", "cuda"):
        for kind, options in RULES:
            for tail in TAILS:
                for dtype in DTYPES if tail is TAILS[-1] else DTYPES[:1]:
                    yield Variant(backend, kind, options, tail, dtype)
        for dtype in DTYPES:
            yield Variant(backend, "AdamW", {}, TAILS[-1], dtype, pairs=True)
        for kind, options in RULES[:4:3]:
            for dtype, stored in STORED:
                every = {**options, **stored, "low_precision_min_size": 0}
                yield Variant(backend, kind, every, TAILS[-1], dtype)


def take(gpu: Any, variant: Variant) -> None:
    """Two steps; the whole tail with a scaler, and with tensors that are aligned to nothing.

    One tensor takes no part in the second.
    """
    params = [torch.randn(shape, device=gpu.device) for shape in SHAPES]
    params += [torch.randn(2101, device=gpu.device).to(variant.dtype)[1:]]
    params = [p.to(variant.dtype).requires_grad_() for p in params]
    usual = {**OPTIMIZERS[variant.kind].usual, **variant.options, **variant.tail}
    info = OPTIMIZERS[variant.kind]
    optimizer = info.cls(info.groups_of(params), backend=variant.backend, **usual)
    scaler = GradScaler(gpu.device.type, init_scale=2.0, enabled=bool(variant.tail))
    for step in range(STEPS):
        scaler.scale(torch.ones((), device=gpu.device))
        for p in params:
            p.grad = torch.rand_like(p).add_(0.5)  # squares that a state of 16 bits can hold
        params[-2].grad = None if step else params[-2].grad
        with _norm(variant.pairs):
            scaler.step(optimizer)
        scaler.update()
    gpu.synchronize()
    assert all(p.isfinite().all() for p in params)


@contextlib.contextmanager
def _norm(pairs: bool) -> Iterator[None]:
    """Sums squares as on a GPU that is fast, or slow, in float64; in two stages."""
    with (
        patch.object(tables, "MOST_SUMS", 2),
        patch.object(triton, "float64_is_slow", lambda device: pairs),
        patch.object(cuda, "float64_is_slow", lambda device: pairs),
    ):
        yield


def main(words: list[str]) -> None:
    """Takes every variant; two of them where it is played."""
    gpu = gpu_of(words)
    every = [variant for variant in variants() if variant.backend in gpu.backends()]
    for variant in gpu.pick(every, every[2 :: len(every) // 2]):
        take(gpu, variant)
        print(variant.backend, variant.kind, variant.options, variant.tail, variant.dtype)


if __name__ == "__main__":
    main(sys.argv[1:])
