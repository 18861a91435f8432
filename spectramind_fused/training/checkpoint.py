"""Everything a run needs to go on, in one file."""

from __future__ import annotations

import io
import math
import os
from pathlib import Path
from typing import Any, BinaryIO

import torch

from spectramind_fused.config.check import ConfigError
from spectramind_fused.training import kept, untrusted

_KEYS = ("model", "optimizer", "scheduler", "epoch", "config", "rng", "cuda_rng")


def collect(
    content: dict[str, Any], model: Any, optimizer: Any, scheduler: Any, precision: Any
) -> dict[str, Any]:
    """All that a checkpoint holds; tensors are the run's own, not copies.

    Args:
        content: "epoch" and "steps", how many are done, and "config", of the run.
        model: its state is taken, and so are those of optimizer and random generators.
        optimizer: see model.
        scheduler: see model; None where the run has none.
        precision: Fabric's plugin; that of float16 has a GradScaler.
    """
    return content | {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "scheduler": scheduler.state_dict() if scheduler is not None else None,
        "precision": precision.state_dict(),
        "rng": torch.get_rng_state(),
        "cuda_rng": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
    }


def packed(content: dict[str, Any]) -> bytes:
    """What `collect` gave, as it is going to lie in the file; it changes no more."""
    memory = io.BytesIO()
    torch.save(content, memory)
    return memory.getvalue()


def save(path: Path, content: dict[str, Any] | bytes, epoch: int = 0, keep: int = 1) -> None:
    """Writes a checkpoint, whole or not at all.

    Args:
        path: the file, replaced if it is there.
        content: of `collect` or `packed`.
        epoch: how many are done; its name where several are kept.
        keep: how many stay, this one included.

    Raises:
        OSError: it cannot be written; what stood there is as it was.
    """

    def write(file: BinaryIO) -> None:
        if isinstance(content, bytes):
            file.write(content)
        else:
            torch.save(content, file)

    kept.put(path, epoch, keep, write)


def load(path: Path, epochs: int) -> dict[str, Any]:
    """Reads a checkpoint onto the CPU; one of an older version has no "steps" and no "precision".

    Args:
        path: the file.
        epochs: of the run that goes on from it.

    Raises:
        ConfigError: what lies at `path` is no checkpoint of a run, or one that has gone farther.
    """
    try:
        content = _read(path)
    except Exception as error:  # a damaged file fails in many ways
        reason = str(error).split("\n")[0]
        instead = kept.instead_of(path, epochs, _read) or "give another one"
        raise ConfigError(
            [f"training.resume={path} cannot be read as a checkpoint ({reason}): {instead}"]
        ) from error
    if content["epoch"] > epochs:
        raise ConfigError(
            [f"training.resume={path} has {content['epoch']} epochs behind it, and "
             f"training.epochs={epochs}: ask for more"]
        )  # fmt: skip
    newer = {"steps": content.get("steps"), "precision": content.get("precision")}
    return {key: content[key] for key in _KEYS} | newer


def missing(path: Path, epochs: int) -> str:
    """What to do where `training.resume` names no file.

    Args:
        path: what it names.
        epochs: of the run that was to go on from it.
    """
    if instead := kept.instead_of(path, epochs, _read):
        return instead
    if os.path.isfile(path.parent / "history.csv") or os.path.isdir(path.parent / ".hydra"):
        return (
            "the run in this folder ended before its first checkpoint. Leave training.resume out, "
            "and it starts from the beginning"
        )
    return "give the path of a checkpoint.pt"


def _read(path: Path) -> dict[str, Any]:
    untrusted.check_file(path)
    content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    untrusted.check_content(content)
    return content


def restore(
    path: Path | None,
    content: dict[str, Any],
    model: Any,
    optimizer: Any,
    scheduler: Any,
    precision: Any,
) -> None:
    """Puts a checkpoint's content into a run, and the random generators where they stood.

    Raises:
        ConfigError: the checkpoint is of another model, optimizer or schedule.
    """
    try:
        if (scheduler is None) != (content["scheduler"] is None):
            raise ValueError("one of the two runs has a scheduler, the other has none.")
        own = [dict(group) for group in optimizer.param_groups]
        optimizer.load_state_dict(content["optimizer"])  # says first if it is another optimizer's
        untrusted.check_groups(content["optimizer"]["param_groups"], own)
        model.load_state_dict(content["model"])
        if scheduler is not None:
            untrusted.check_like(content["scheduler"], scheduler.state_dict(), "its scheduler")
            scheduler.load_state_dict(content["scheduler"])
        if content["precision"] and precision.state_dict():
            untrusted.check_like(content["precision"], precision.state_dict(), "its GradScaler")
            if not 0 < content["precision"]["scale"] < math.inf:
                raise ValueError(f"its GradScaler's scale is {content['precision']['scale']}.")
            precision.load_state_dict(content["precision"])
        torch.set_rng_state(content["rng"])
        if content["cuda_rng"] is not None and torch.cuda.is_available():
            torch.cuda.set_rng_state(content["cuda_rng"])
    except Exception as error:  # whatever torch's code says to a damaged state
        reason = " ".join(str(error).split())
        raise ConfigError([f"training.resume={path} does not fit this run: {reason}"]) from error
