"""Files that are whole or as they were: written beside, brought to the disk, then put in place."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def whole(path: Path) -> Iterator[BinaryIO]:
    """Opens what replaces a file once it is complete and on the disk.

    Whoever reads the file, also after a crash of the machine, finds all of it or what stood there
    before. Its folder is made if need be.

    Args:
        path: the file.

    Raises:
        OSError: it cannot be written; what stood there is as it was, and nothing else is left.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except BaseException as error:
        part.unlink(missing_ok=True)
        reason = _of_system(error)
        if reason is not None and reason is not error:  # torch.save says other words for it
            raise reason from None
        raise
    _sync_folder(path.parent)


def _of_system(error: BaseException | None) -> OSError | None:
    """What the system refused, where that is behind an error."""
    while error is not None and not isinstance(error, OSError):
        error = error.__context__
    return error


def _sync_folder(folder: Path) -> None:
    """Brings a folder's entries to the disk, where folders can be opened."""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
