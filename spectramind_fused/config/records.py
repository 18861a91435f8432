"""What remains of a run: hashes, the debug log and the JSON export (Markdown and JSON)."""

from __future__ import annotations

import hashlib
import json
import platform
import subprocess
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock

from spectramind_fused.config.groups import assign
from spectramind_fused.config.schema import OptimizerConfig, optimizer_node, plain
from spectramind_fused.files import write_together, write_whole
from spectramind_fused.optim import FusedStep, Options
from spectramind_fused.version import __version__

DEBUG_LOG = Path("logs/v50_debug_log.md")
_HEADER = "SpectraMind V50 — Debug & Audit Log\nAppend-only operator log (immutable).\n"


def config_hash(container: Any) -> str:
    """sha256 over the canonical JSON of a resolved config, 64 hex digits."""
    text = json.dumps(plain(container), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def collect(described: dict[str, Any], run_folder: Path, overrides: list[str]) -> dict[str, Any]:
    """Everything about a run's optimizer that its records state.

    Args:
        described: what `describe` returns.
        run_folder: the run's own.
        overrides: the command line.
    """
    return {
        "time": datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        **described,
        "git_sha": _git_sha(),
        "overrides": overrides,
        "run_folder": str(run_folder),
        "versions": {
            "spectramind_fused": __version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
    }


def describe(
    config: Any, parsed: OptimizerConfig, optimizer: FusedStep, model: torch.nn.Module
) -> dict[str, Any]:
    """The optimizer as it was built: values, backend, groups, which tensor went where and why."""
    return {
        "optimizer": optimizer_node(config),
        "class": type(optimizer).__name__,
        "backend": optimizer.backends() if parsed.fused else _plain(optimizer),
        "param_groups": [
            {
                **({} if group.get("use_muon", True) else {"stepped_by": "AdamW"}),
                "lr": float(group.get("initial_lr", group["lr"])),  # before the schedule
                "weight_decay": float(group.get("weight_decay", 0.0)),
                "lookahead_k": Options.of(group).lookahead_k,
                "ema_decay": Options.of(group).ema_decay,
                "bytes_per_parameter": {
                    name: round(size, 4)
                    for name, size in optimizer.bytes_per_parameter(group).items()
                },
                "tensors": len(group["params"]),
                "parameters": sum(p.numel() for p in group["params"]),
            }
            for group in optimizer.param_groups
        ],
        "assignments": {
            a.name: {
                "decays": a.decays,
                "why": f"{a.why}; by AdamW: {a.why_adamw}" if a.why_adamw else a.why,
                "parameters": a.parameter.numel(),
            }
            for a in assign(model, parsed.groups, parsed.adamw)
        },
        "config_hash": config_hash(optimizer_node(config)),
        "run_hash": config_hash(config),
    }


def _plain(optimizer: FusedStep) -> dict[str, str]:
    """The backend is eager because of the config; what the class knows is that it was asked for."""
    return dict.fromkeys(optimizer.backends(), "eager (fused: false)")


def append_debug_log(record: dict[str, Any], path: Path = DEBUG_LOG) -> None:
    """Appends a run to the Markdown audit log, whole, also beside other runs doing so."""
    node = record["optimizer"]
    lines = {
        "optimizer": f"{node['name']} ({node['type']})",
        "lr": node.get("lr"),
        "weight decay": node.get("weight_decay", 0),
        **{key: node[key] for key in ("betas", "momentum") if key in node},
        "backend": ", ".join(f"{d}: {line}" for d, line in record["backend"].items()),
        "config hash": record["config_hash"][:12],
        "run hash": record["run_hash"][:12],
        "git SHA": record["git_sha"],
        "overrides": " ".join(record["overrides"]) or "none",
        "run folder": record["run_folder"],
    }
    entry = f"\n⸻\n{record['time']} — spectramind train\n"
    entry += "".join(f"\t• {key}: {value}\n" for key, value in lines.items())
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{path}.lock"):
        there = path.read_bytes() if path.exists() else b""
        write_together({path.resolve(): (there or _HEADER.encode()) + entry.encode()})


def export_json(record: dict[str, Any], path: Path) -> None:
    """Writes a record as JSON, whole or not at all."""
    write_whole(path, json.dumps(record, indent=2) + "\n")


def _git_sha() -> str:
    try:
        run = subprocess.run(
            ["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return run.stdout.strip()
