"""The checkpoints of a run: the newest one, and the last few where that many are kept.

The newest is `checkpoint.pt`. Where several are kept, each is `checkpoint-epoch-0003.pt` by its
epoch, the newest one too, which then has both names.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from spectramind_fused.files import name_also, remove_parts, whole

_NEWEST = "checkpoint.pt"
_NUMBERED = re.compile(r"checkpoint-epoch-(\d{4,})\.pt")


def put(path: Path, epoch: int, keep: int, write: Callable[[BinaryIO], object]) -> None:
    """Writes a checkpoint, whole or not at all; then removes those that are to go.

    Args:
        path: of the newest, replaced if it is there.
        epoch: how many epochs it has behind it.
        keep: how many stay. With one, none is numbered, and no numbered one is removed.
        write: writes it to a file that is open.

    Raises:
        OSError: it cannot be written; all others are there as they were.
    """
    own = path.with_name(f"checkpoint-epoch-{epoch:04}.pt") if keep > 1 else path
    with whole(own) as file:
        write(file)
    if keep == 1:
        return
    name_also(own, path)
    _remove_old(path.parent, epoch, keep)
    for number, other in _numbered(path.parent).items():
        if number > epoch:  # the run has gone back behind it
            other.unlink()


def tidy(folder: Path, before: Path, epoch: int, keep: int) -> None:
    """Removes what a killed process has left half written, or did not come to remove.

    Args:
        folder: of the run.
        before: of the run that it goes on from; may be the same.
        epoch: how many epochs are done.
        keep: how many checkpoints stay.
    """
    for each in {folder, before}:
        remove_parts(each)
    if keep > 1:
        _remove_old(folder, epoch, keep)


def instead_of(path: Path, epochs: int, read: Callable[[Path], dict[str, Any]]) -> str:
    """Names the newest checkpoint in the folder of one that cannot be used; empty where none can.

    Args:
        path: what cannot be used.
        epochs: the most that it may have behind it.
        read: reads one, or fails.
    """
    numbered = _numbered(path.parent)
    others = [path.parent / _NEWEST, *(numbered[n] for n in sorted(numbered, reverse=True))]
    for other in others:
        try:
            epoch = read(other)["epoch"] if other != path else epochs + 1
        except Exception:  # a damaged file fails in many ways
            continue
        if epoch <= epochs:
            return f"give {other} instead, which has {epoch} epoch{'s' * (epoch != 1)} behind it"
    return ""


def _remove_old(folder: Path, epoch: int, keep: int) -> None:
    numbered = _numbered(folder)
    for number in sorted(number for number in numbered if number <= epoch)[:-keep]:
        numbered[number].unlink()


def _numbered(folder: Path) -> dict[int, Path]:
    paths = folder.iterdir() if os.path.isdir(folder) else ()  # also of a path that is too long
    return {int(found[1]): path for path in paths if (found := _NUMBERED.fullmatch(path.name))}
