"""Every variant of every CUDA kernel, compiled by nvcc for GPUs that are not here."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cuda_build
from benchmarks.device_code import issue_rate
from benchmarks.device_code.machine_code import read_cubin
from spectramind_fused.bench.traffic import of_norm, of_update

THREADS = 128  # kThreads of csrc/cuda/kernels.cuh
_STORED = {"f": "float32", "bfloat16": "bfloat16", "float16": "float16", "Mixed": "mixed",
           "AnyOfILi0E": "any"}  # fmt: skip
_FACTORED = "Adafactor<true>"  # its factors are read from the cache
_RULE = r"NS_\d+([A-Za-z]+?)(?:ILb([01])EE)?E"
_TYPE = r"(f|NS_\d+(AnyOfILi0E|\w+?)E)"


def compiled(arch: str, folder: Path) -> tuple[Path, str]:
    """Compiles csrc/cuda for one GPU.

    Args:
        arch: such as "sm_90".
        folder: where the cubin goes.

    Returns:
        The cubin, and what ptxas says of each kernel.

    Raises:
        FileNotFoundError: there is no nvcc.
        RuntimeError: it failed.
    """
    nvcc = cuda_build.find_nvcc()
    if nvcc is None:
        raise FileNotFoundError("nvcc is not on PATH")
    cubin = folder / f"step_{arch}.cubin"
    flags = [flag for flag in cuda_build.FLAGS if flag != "-shared"]
    command = [nvcc, *flags, "-cubin", f"-arch={arch}", "-Xptxas", "-v", "-o", str(cubin)]
    run = subprocess.run(
        [*command, str(cuda_build.SOURCE)], capture_output=True, text=True, check=False
    )
    if run.returncode:
        raise RuntimeError(run.stderr)
    return cubin, run.stderr


def described(name: str) -> dict[str, Any]:
    """What a mangled name says: kernel, rule, number of states, what is stored."""
    if match := re.search(rf"6updateI{_RULE}Li(\d+)E{_TYPE}", name):
        rule, flag, states, plain, named = match.groups()
        label = {"kernel": "update", "rule": _as_written(rule, flag)}
        return {**label, "states": int(states), "dtype": _STORED[named or plain]}
    if match := re.search(rf"7advanceI{_RULE}", name):
        return {"kernel": "advance", "rule": _as_written(match[1], match[2])}
    if match := re.search(r"\d(squares|move|divide|measure|scale)I(\w+)Li\d+EEEvNS", name):
        return {"kernel": match[1], "of": match[2]}
    if match := re.search(rf"4normI{_TYPE}Lb([01])", name):
        dtype = _STORED[match[2] or match[1]]
        return {"kernel": "norm", "dtype": dtype, "pairs": match[3] == "1"}
    assert "6reduce" in name, name
    return {"kernel": "reduce"}


def _as_written(rule: str, flag: str | None) -> str:
    """A rule's name in csrc/update_rules.h, such as `RMSprop<true>`."""
    return rule if flag is None else f"{rule}<{'true' if flag == '1' else 'false'}>"


def rows(arch: str, cubin: Path) -> Iterator[dict[str, Any]]:
    """Every kernel of a cubin, once: those for few and for many gradients differ in no access.

    The epilogues are branches, so a turn of the loop holds them all; a thread steps 128 bits of the
    parameter in it, of `norm` 64 bytes.
    """
    seen = []
    for name, code in read_cubin(cubin, THREADS):
        label = described(name)
        if label in seen:
            continue
        seen.append(label)
        row = {"arch": arch, "backend": "cuda", **label, **code.figures(), "expected_bytes": None}
        steps: dict[str, float] = {}
        by_formula = label["kernel"] in ("norm", "update") and label.get("rule") != _FACTORED
        if by_formula and label["dtype"] not in ("mixed", "any"):
            size = 4 if label["dtype"] == "float32" else 2
            norm = label["kernel"] == "norm"
            row["bytes_per_parameter"] /= (64 if norm else 16) // size
            steps = (
                {"": of_norm(size).total} if norm else _steps(label["rule"], label["states"], size)
            )
            row["expected_bytes"] = max(steps.values())
        row["rates"] = issue_rate.rates(row, code.code, steps)
        yield row


def _steps(rule: str, states: int, size: int) -> dict[str, float]:
    """Bytes per parameter without an epilogue and with all of them: one kernel serves both."""
    return {
        "no epilogue": of_update(states, size, rule=rule).total,
        "every epilogue": of_update(
            states, size, rule=rule, syncs=1, ema=True, zero_grads=True
        ).total,
    }
