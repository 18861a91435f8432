"""A file that is replaced is whole or as it was, whatever happens meanwhile."""

import errno
import os
import resource
import signal
import stat
from contextlib import contextmanager

import pytest
import torch

from spectramind_fused.bench.report import write_rows
from spectramind_fused.files import reason, unwritable, whole, write_whole


@contextmanager
def at_most(size):
    """No file of this process may be larger: what a full disk or a quota does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)


def test_it_is_replaced_in_one_go(tmp_path):
    path = tmp_path / "deep" / "file"
    with whole(path) as file:
        file.write(b"old")
    with whole(path) as file:
        file.write(b"new")
        file.flush()
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"
    assert os.listdir(path.parent) == ["file"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_exception_leaves_what_was_there(tmp_path, error):
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def interrupted():
        with whole(path) as file:
            file.write(b"new")
            raise error

    with pytest.raises(error):
        interrupted()
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("save", [torch.save, lambda tensors, file: file.write(bytes(400_000))])
def test_a_full_disk_is_said_in_the_systems_words(tmp_path, save):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with at_most(100_000), pytest.raises(OSError, match="File too large"), whole(path) as file:
        save({"p": torch.zeros(100_000)}, file)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


def test_it_is_on_the_disk_before_it_replaces_and_the_folder_after(tmp_path, monkeypatch):
    done = []
    fsync, replace = os.fsync, os.replace

    def synced(handle):
        done.append(os.path.basename(os.readlink(f"/proc/self/fd/{handle}")))
        fsync(handle)

    def replaced(part, path):
        done.append("replaced")
        replace(part, path)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", replaced)
    with whole(tmp_path / "file") as file:
        file.write(b"new")
    assert done == [f".file.{os.getpid()}.part", "replaced", tmp_path.name]


def test_a_file_can_be_written_where_its_folder_can(tmp_path, monkeypatch):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    monkeypatch.setattr(os, "access", lambda at, _: at != path)
    assert unwritable(path) == ""
    monkeypatch.setattr(os, "access", lambda at, _: at != tmp_path)
    assert (
        unwritable(path) == unwritable(tmp_path / "new") == f"no permission to write to {tmp_path}"
    )


def test_a_pipe_or_a_device_is_not_replaced(tmp_path):
    path = tmp_path / "pipe"
    os.mkfifo(path)
    said = "it is a device or a pipe"
    assert said in unwritable(path)
    with pytest.raises(OSError, match=said), whole(path):
        pass
    assert path.is_fifo()


def test_a_folder_that_cannot_be_synced_is_no_error(tmp_path, monkeypatch):
    sync = os.fsync

    def of_files_only(handle):
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        sync(handle)

    monkeypatch.setattr(os, "fsync", of_files_only)
    write_whole(tmp_path / "a", "whole")
    assert (tmp_path / "a").read_text() == "whole"


def test_the_benchs_figures_are_whole_or_as_they_were(tmp_path):
    """A disk without room: what stood there stays, and nothing else is left."""
    path = tmp_path / "figures.csv"
    write_rows(path, [])
    before = path.read_bytes()
    with at_most(10), pytest.raises(OSError, match=r"figures\.csv"):
        write_rows(path, [])
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["figures.csv"]


def test_what_the_system_refused_is_a_sentence():
    refused = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "a.csv")
    assert reason(refused) == "a.csv cannot be read or written: No space left on device."
    assert reason(OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))).startswith("a file cannot be")
    assert reason(OSError("the drive is gone")) == "the drive is gone."
