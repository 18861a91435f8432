"""The `triton` backend: GPUs, and CPU tensors under TRITON_INTERPRET=1.

Nothing of Triton is imported before a tensor asks for it, so the package works without it.
"""

from __future__ import annotations

import contextlib
import functools
from typing import Any

import torch

from spectramind_fused.multi_tensor import Bucket, Tables

CHUNK = 8192
BLOCK = 1024  # 8 elements per thread of 4 warps: 128-bit accesses down to 16-bit dtypes
_TENSORS_PER_PROGRAM = 128  # of `advance`
_DTYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}


class TritonBackend:
    """Triton kernels: float32, bfloat16 and float16 parameters."""

    name = "triton"

    def unavailable(self, device: torch.device) -> str | None:
        """Why Triton cannot run on `device`, or None."""
        try:
            import triton
        except ImportError as error:
            return f"triton does not import ({error}); `pip install triton` on Linux"
        if triton.knobs.runtime.interpret:
            return None if device.type == "cpu" else "Triton's interpreter serves CPU tensors only"
        try:
            active = triton.runtime.driver.active.get_active_torch_device()
        except Exception as error:  # Triton raises what its drivers raise
            return f"Triton finds no GPU it supports here ({error})"
        if device.type != active.type:
            return f"Triton's active driver serves {active.type} tensors, not {device.type}"
        return None

    def prefers(self, device: torch.device) -> bool:
        """On GPUs: on a CPU Triton is only interpreted."""
        return device.type != "cpu"

    def unsupported(self, dtype: torch.dtype) -> str | None:
        """Why a dtype cannot be served, or None."""
        return None if dtype in _DTYPES else f"the triton backend has no {dtype}"

    def tables(self, bucket: Bucket) -> Tables:
        """Builds the tables of a bucket."""
        from spectramind_fused.kernels.triton import rules, walk

        columns = rules.RULES[bucket.rule].scalar_columns
        return Tables(bucket, CHUNK, walk.COMMON_SCALARS.value + columns)

    def advance(self, tables: Tables) -> None:
        """Counts the step and derives the scalars."""
        from spectramind_fused.kernels.triton import walk

        with _on(tables.device):
            walk.advance[(-(-tables.tensors // _TENSORS_PER_PROGRAM),)](
                tables.pointers,
                tables.groups,
                tables.hyperparameters,
                tables.scalars,
                tables.tensors,
                **advance_constants(tables.rule),
            )

    def update(self, tables: Tables) -> None:
        """Updates every chunk."""
        from spectramind_fused.kernels.triton import walk

        if not len(tables.chunks):
            return
        with _on(tables.device):
            walk.update[(len(tables.chunks),)](
                tables.pointers,
                tables.sizes,
                tables.chunks,
                tables.scalars,
                tables.tensors,
                **update_constants(tables.rule, tables.states, tables.lookahead, tables.dtypes),
            )


# The constants below decide which variant of a kernel is compiled. FP fusion is off: the
# kernels are bound by memory, and without it they round like csrc/ and like plain torch.


@functools.cache
def advance_constants(rule: str) -> dict[str, Any]:
    """Compile-time arguments and launch options of `advance`."""
    from spectramind_fused.kernels.triton.rules import RULES

    return {
        "RULE_SCALARS": RULES[rule].scalars,
        "RULE_HYPERPARAMETERS": RULES[rule].hyperparameter_columns,
        "BLOCK": _TENSORS_PER_PROGRAM,
        "num_warps": 4,
        "enable_fp_fusion": False,
    }


@functools.cache
def update_constants(
    rule: str, states: int, lookahead: bool, dtypes: tuple[torch.dtype, ...]
) -> dict[str, Any]:
    """Compile-time arguments and launch options of `update`."""
    import triton.language as tl

    from spectramind_fused.kernels.triton.rules import RULES

    return {
        "RULE_UPDATE": RULES[rule].update,
        "RULE_SCALARS": RULES[rule].scalar_columns,
        "DTYPES": tuple(getattr(tl, _DTYPES[dtype]) for dtype in dtypes),
        "STATES": states,
        "LOOKAHEAD": lookahead,
        "CHUNK": CHUNK,
        "BLOCK": BLOCK,
        "num_warps": 4,
        "enable_fp_fusion": False,
    }


def _on(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Makes `device` the current one: Triton launches there."""
    if device.type == "cpu":
        return contextlib.nullcontext()
    return torch.get_device_module(device).device(device)  # type: ignore[no-any-return]
