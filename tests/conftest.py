"""Triton's kernels are interpreted here: the switch must be set before Triton is imported."""

import os

os.environ["TRITON_INTERPRET"] = "1"

import numpy as np
import pytest
import torch

torch.set_num_threads(2)


@pytest.fixture(autouse=True, scope="session")
def _interpreter_rounds_bfloat16_like_a_gpu():
    """Triton 3.9's interpreter truncates float32 to bfloat16; compiled code rounds to even."""
    try:
        import triton.language as tl
        from triton.runtime import interpreter
    except ImportError:
        yield
        return

    original = interpreter.InterpreterBuilder.cast_impl

    def cast_impl(self, source, target):
        if source.dtype.scalar == tl.float32 and target.scalar == tl.bfloat16:
            raw = np.ascontiguousarray(source.data).view(np.uint32).astype(np.uint64)
            rounded = (raw + 0x7FFF + ((raw >> 16) & 1)) >> 16
            rounded = np.where(np.isnan(source.data), 0x7FC0, rounded).astype(np.uint16)
            return interpreter.TensorHandle(rounded, target.scalar)
        return original(self, source, target)

    interpreter.InterpreterBuilder.cast_impl = cast_impl
    yield
    interpreter.InterpreterBuilder.cast_impl = original


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)
