"""Files that are whole or as they were: written beside, brought to the disk, then put in place."""

from __future__ import annotations

import errno
import os
import re
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import BinaryIO

if sys.platform != "win32":
    import fcntl

_SPECIAL = "it is a device or a pipe, which is not to be replaced"
_PART = re.compile(r"\.(.+)\.\d+\.part")  # file.txt is written as .file.txt.PROCESS.part


@contextmanager
def whole(path: Path) -> Iterator[BinaryIO]:
    """Opens what replaces a file once it is complete and on the disk.

    Whoever reads the file, also after a crash of the machine, finds all of it or what stood there
    before. Its folder is made if need be. A process that is killed leaves its part, which is never
    read: whoever writes the file next removes it.

    Args:
        path: the file.

    Raises:
        OSError: it cannot be written; what stood there is as it was, and nothing else is left.
    """
    if _is_special(path):
        raise OSError(errno.EINVAL, _SPECIAL, str(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_parts(path.parent, path.name)
    part = _part(path)
    try:
        with _opened(part) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
            if sys.platform != "win32":  # while it is held, or `remove_parts` might take it
                os.replace(part, path)
        if sys.platform == "win32":  # renames no file that is open
            os.replace(part, path)
    except BaseException as error:
        part.unlink(missing_ok=True)
        refused = _of_system(error)  # where torch.save says other words for it
        if refused is None or refused.errno is None:
            raise
        named = refused.filename if refused.filename not in (None, str(part)) else str(path)
        raise OSError(refused.errno, os.strerror(refused.errno), named) from error
    _sync_folder(path.parent)


def name_also(path: Path, other: Path) -> None:
    """Puts a file that is on the disk under a second name too, in one go.

    Args:
        path: the file.
        other: its second name, replaced if it is there. Where the file system has no hard links,
            this is a copy.

    Raises:
        OSError: as `whole`.
    """
    part = _part(other)
    part.unlink(missing_ok=True)
    try:
        os.link(path, part)
    except OSError:
        with path.open("rb") as content, whole(other) as file:
            shutil.copyfileobj(content, file)
        return
    try:
        os.replace(part, other)
    except OSError:
        part.unlink(missing_ok=True)
        raise
    _sync_folder(other.parent)


def remove_parts(folder: Path, name: str | None = None) -> None:
    """Removes what killed processes have left of files they wrote; what is being written stays.

    Args:
        folder: where to look.
        name: of the file; without one, of every file there.
    """
    for path in folder.iterdir() if folder.is_dir() else ():
        found = _PART.fullmatch(path.name)
        if found is None or name not in (None, found[1]):
            continue
        try:
            if sys.platform == "win32":  # refuses while it is open
                path.unlink()
                continue
            with path.open("r+b") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()
        except OSError:  # whoever writes it holds it, or it is not ours to remove
            continue


def write_whole(path: Path, text: str) -> None:
    """Writes a text so that whoever reads the file finds all of it, or what stood there before."""
    write_together({path: text})


def write_together(files: Mapping[Path, str | bytes]) -> None:
    """Writes several files; where one of them has no room, none is written.

    Args:
        files: what each is going to hold.

    Raises:
        OSError: as `whole`.
    """
    with ExitStack() as opened:
        for path, content in files.items():
            file = opened.enter_context(whole(path))
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()


def unwritable(path: Path) -> str:
    """Why a file cannot be written; empty where it can, as far as that shows beforehand."""
    try:
        if path.is_dir():
            return f"{path} is a folder"
        if _is_special(path):
            return f"{path} cannot be used: {_SPECIAL}"
        there = next(p for p in (path.absolute(), *path.absolute().parents) if p.exists())
    except OSError as error:
        return f"{path.parent} cannot be used: {error.strerror}"
    if there != path.absolute() and not there.is_dir():
        return f"{there} is no folder"
    folder = there if there.is_dir() else there.parent  # a file is replaced, not written to
    return "" if os.access(folder, os.W_OK) else f"no permission to write to {folder}"


def _is_special(path: Path) -> bool:
    return path.exists() and not path.is_file() and not path.is_dir()


def _part(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.part")


def _opened(part: Path) -> BinaryIO:
    """Opens a part, held for as long as it is open: the system lets go of it when we are killed."""
    part.unlink(missing_ok=True)
    while True:
        file = part.open("xb")
        if sys.platform == "win32":
            return file
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError:  # this file system has no such thing, so nobody else removes it either
            return file
        if part.exists():
            return file
        file.close()  # it was removed before we held it


def reason(error: OSError) -> str:
    """What the system refused, as a sentence."""
    if error.strerror is None:
        return f"{error or type(error).__name__}."
    what = "a file" if error.filename is None else str(error.filename)
    return f"{what} cannot be read or written: {error.strerror}."


def _of_system(error: BaseException | None) -> OSError | None:
    """What the system refused, where that is behind an error."""
    while error is not None and not isinstance(error, OSError):
        error = error.__context__
    return error


def _sync_folder(folder: Path) -> None:
    """Brings a folder's entries to the disk, where a file system can do that."""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # as some network disks say
            raise
    finally:
        os.close(handle)
