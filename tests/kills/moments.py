"""The moments of a run, as moments.cpp counts them, and which of them are taken."""

import collections
import functools
import re
import shlex
import shutil
import sys
from os import environ
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.command_line import spectramind
from tests.emulator.native import cached, compiled

SOURCE = Path(__file__).with_name("moments.cpp")
FLAGS = ["-std=c++17", "-O2", "-Wall", "-Wextra", "-shared", "-fPIC", "-ldl"]


class Moment(NamedTuple):
    """A call that is about to happen.

    Attributes:
        number: of the moment, from 1.
        what: the call does: open, write, sync, rename, link, remove, make, truncate; or a step.
        path: of what, below the folder.
        source: what a rename or a link names anew.
        size: how many bytes it writes.
        torn: whether half of them are written before the kill.
    """

    number: int
    what: str
    path: str
    source: str
    size: int
    torn: bool = False

    def __str__(self):
        torn = "half of a " if self.torn else ""
        return f"{self.number}: {torn}{self.what} {re.sub('[0-9]+.part', 'N.part', self.path)}"


@functools.cache
def shim():
    """moments.cpp, compiled."""
    compiler = shlex.split(environ.get("CXX", "c++"))
    if sys.platform != "linux" or shutil.which(compiler[0]) is None:
        pytest.skip("needs Linux and a C++ compiler")
    library = cached("moments.so", *compiler, *FLAGS, SOURCE.read_bytes())
    return str(compiled(library, [*compiler, str(SOURCE), *FLAGS]))


def run(folder, *words, at=None, error=None):
    """Runs a command and kills it at a moment; returns how it ended, and the moments it had.

    With an error number it is not killed: from that moment on nothing can be written.
    """
    log = folder.with_name(f"{folder.name}.moments")
    log.unlink(missing_ok=True)
    more = {"SPECTRAMIND_KILL_FOLDER": str(folder), "SPECTRAMIND_KILL_LOG": str(log),
            "SPECTRAMIND_TEST_HOOK": "tests.kills.hook"}  # fmt: skip
    more |= {"SPECTRAMIND_KILL_AT": str(at.number)} if at else {}
    more |= {"SPECTRAMIND_KILL_TORN": "1"} if at and at.torn else {}
    more |= {"SPECTRAMIND_KILL_ERRNO": str(error)} if error else {}
    ended = spectramind(folder, *words, preloaded=shim(), **more)
    lines = log.read_text().splitlines() if log.exists() else []
    fields = (line.split("\t") for line in lines)
    return ended, [
        Moment(i, what, path, source, int(size))
        for i, (what, path, source, size) in enumerate(fields, 1)
    ]


def of_whole(folder, *words):
    """The moments of a command that nothing disturbs."""
    ended, seen = run(folder, *words)
    assert ended.returncode == 0, ended.stderr
    return seen


def with_torn(moments):
    """These, and one more in the middle of each write."""
    return [*moments, *(m._replace(torn=True) for m in moments if m.size > 1)]


def spread(moments, count):
    """So many of them: as many of each kind as there are, evenly over the run."""
    kinds = collections.defaultdict(list)
    for moment in moments:
        kinds[moment.what.removesuffix(" anew"), moment.torn].append(moment)
    taken = []
    for left, kind in zip(range(len(kinds), 0, -1), sorted(kinds.values(), key=len), strict=True):
        share = min(len(kind), -(-(count - len(taken)) // left))
        taken += [kind[(2 * i + 1) * len(kind) // (2 * share)] for i in range(share)]
    return sorted(taken)


def written(moments):
    """How many bytes lie in each file, by what was seen of them."""
    sizes = collections.Counter()
    for moment in moments:
        if moment.what in ("open anew", "remove"):
            sizes[moment.path] = 0
        if moment.what in ("rename", "link"):
            sizes[moment.path] = sizes[moment.source]
        sizes[moment.path] += moment.size
    return sizes
