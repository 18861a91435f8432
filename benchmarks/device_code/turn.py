"""One turn of the loop that steps full chunks: what a warp issues in it.

The loop is the one that loads 128 bits at once. It is followed from its first instruction to the
branch that leads back there; of all ways through it this one is the common one:

- It calls nothing. IEEE divisions and roots keep their slow path in a call, behind a branch, which
  counts and is not taken.
- It moves what the step moves: a skipped step moves less, one that syncs more.
- Of those that are left it is the longest: no shortcut for rare values is counted on.

An instruction whose predicate is off is issued all the same, and counts.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

from benchmarks.device_code.sass import Code, opcode, target, width

_LEAVES = ("CALL", "EXIT", "RET", "BRX", "JMP", "KILL")


class Turn(NamedTuple):
    """What one warp does in a turn.

    Attributes:
        issued: how many instructions of each opcode.
        elements: of the parameter, that each of its 32 lanes steps.
    """

    issued: Counter[str]
    elements: int


class _Way(NamedTuple):
    """A way up to an instruction; the first has none."""

    length: int = 0
    loads: bool = False  # 128 bits at once: a loop that writes zeros stores as widely
    last: str = ""
    before: _Way | None = None


_Ways = dict[int, _Way]  # the longest for each number of bytes that a lane moves on it


def full_chunk_turn(code: Code, moved: float, fullest: float | None = None) -> Turn:
    """Finds the loop and counts a turn of it.

    Args:
        code: of one kernel, `update` or `norm`.
        moved: bytes per element of the step that is asked about.
        fullest: of the step with every epilogue that the kernel decides on while it runs; by
            default it decides on none.

    Raises:
        ValueError: there is no such loop, or it does not move so many bytes.
    """
    fullest = moved if fullest is None else fullest
    found = [ways for header in _headers(code) if (ways := _round_trips(code, header))]
    if not found:
        raise ValueError(
            "no loop with 128-bit loads was found: give the machine code of `update` or `norm`, "
            "compiled for NVIDIA"
        )
    ways = max(found, key=max)
    elements, rest = divmod(max(ways), fullest)
    if rest or not elements:
        raise ValueError(
            f"a turn of the loop moves {max(ways)} bytes per lane, which is no whole number of "
            f"elements of {fullest:g} bytes: compare the kernel with bench/traffic.py"
        )
    # A predicate instead of a branch leaves no way of exactly these bytes, but one of a few more.
    way = ways[min(size for size in ways if size >= moved * elements)]
    issued: Counter[str] = Counter()
    while way.before is not None:
        issued[opcode(way.last)] += 1
        way = way.before
    return Turn(issued, int(elements))


def _headers(code: Code) -> set[int]:
    """Where a branch leads back to."""
    return {to for at, text in code if (to := target(text)) is not None and to < at}


def _round_trips(code: Code, header: int) -> _Ways:
    """The ways from a loop's first instruction back to it, on which 128 bits are loaded at once.

    Branches within it are followed forwards only, so a loop in the loop is passed once.
    """
    reached: dict[int, _Ways] = {header: {0: _Way()}}
    back: _Ways = {}
    following = dict(zip((at for at, _ in code), (at for at, _ in code[1:]), strict=False))
    for at, text in code:
        bits = width(text)
        loads = bits == 128 and "LDG" in text
        here = {
            size + bits // 8: _Way(way.length + 1, way.loads or loads, text, way)
            for size, way in reached.pop(at, {}).items()
        }
        for to in _next(text, following.get(at)):
            if to == header:
                _keep(back, here)
            elif to > at:
                _keep(reached.setdefault(to, {}), here)
    return {size: way for size, way in back.items() if way.loads}


def _next(text: str, following: int | None) -> Iterator[int]:
    """Addresses that may come after an instruction.

    A call on a predicate is how ptxas writes that a warp leaves the loop.
    """
    to = target(text)
    if to is not None:
        yield to
    goes = opcode(text).split(".")[0] in _LEAVES or re.search(r"\bBRA\S* 0x", text)
    if following is not None and (text.startswith("@") or not goes):
        yield following


def _keep(ways: _Ways, more: _Ways) -> None:
    for size, way in more.items():
        if size not in ways or way.length > ways[size].length:
            ways[size] = way
