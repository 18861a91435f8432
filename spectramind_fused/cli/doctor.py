"""`doctor`: what runs here, what does not, and why."""

from __future__ import annotations

import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version

import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from spectramind_fused.kernels import BACKENDS
from spectramind_fused.optim import FusedAdamW
from spectramind_fused.stepping.backends import choose

_PACKAGES = (
    "spectramind-fused", "triton", "hydra-core", "omegaconf", "lightning-fabric", "chemotools",
    "matplotlib",
)  # fmt: skip


def run(words: list[str]) -> None:
    """Prints devices, backends and versions."""
    if words:
        print(f"spectramind doctor takes no arguments, not {' '.join(words)}.", file=sys.stderr)
        sys.exit(2)
    console = Console(soft_wrap=True, highlight=False)
    for title, rows in (
        ("devices", _devices()),
        ("backends", _backends()),
        ("versions", _versions()),
    ):
        table = Table(title=title, title_justify="left", show_header=False)
        for row in rows:
            table.add_row(*map(escape, row))
        console.print(table)


def _device_types() -> list[torch.device]:
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    return [torch.device("cpu"), *([accelerator] if accelerator is not None else [])]


def _devices() -> list[tuple[str, str]]:
    rows = [("cpu", f"{os.cpu_count()} cores, {torch.get_num_threads()} threads of torch's")]
    if torch.cuda.is_available():
        for i in range(torch.cuda.device_count()):
            found = torch.cuda.get_device_properties(i)
            what = f"{found.name}, {found.total_memory / 2**30:.0f} GiB"
            bf16 = "bfloat16" if torch.cuda.is_bf16_supported() else "no bfloat16"
            rows.append((f"cuda:{i}", f"{what}, sm_{found.major}{found.minor}, {bf16}"))
    elif len(_device_types()) > 1:
        rows.append((_device_types()[1].type, "an accelerator of torch's"))
    else:
        rows.append(("gpu", f"none found; this torch is built for {_built_for()}"))
    return rows


def _built_for() -> str:
    if torch.version.cuda:
        return f"CUDA {torch.version.cuda}"
    return f"ROCm {torch.version.hip}" if torch.version.hip else "CPUs only"


def _backends() -> list[tuple[str, str, str]]:
    """For each device every backend: whether it runs, and if not why; then what auto takes."""
    rows = []
    for device in _device_types():
        for backend in BACKENDS.values():
            reason = backend.unavailable(device)
            rows.append((device.type, backend.name, f"cannot run: {reason}" if reason else "runs"))
        rows.append((device.type, "torch", "runs: torch's own step, in its fastest form"))
        rows.append((device.type, "eager", "runs: torch's own step, the reference"))
        taken = choose("auto", device, FusedAdamW.algorithm).backend
        rows.append((device.type, "auto", f"takes {taken.name if taken else 'torch'}"))
    return rows


def _versions() -> list[tuple[str, str]]:
    rows = [("python", f"{platform.python_version()} on {platform.platform()}")]
    rows.append(("torch", torch.__version__))  # with what it is built for, such as +cu130
    for name in _PACKAGES:
        try:
            rows.append((name, version(name)))
        except PackageNotFoundError:
            rows.append((name, "not installed"))
    return rows
