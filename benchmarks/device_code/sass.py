"""NVIDIA's machine code as cuobjdump prints it: addresses, texts, and what a text says."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

Code = list[tuple[int, str]]  # every instruction of a kernel: address and text


def cuobjdump(*arguments: str) -> str:
    """What the one that comes with Triton prints."""
    import triton  # here: a text is read without it

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    return subprocess.run([tool, *arguments], capture_output=True, text=True, check=True).stdout


def instructions(assembly: str) -> Code:
    """Addresses and texts of what `cuobjdump -sass` printed of one kernel."""
    found = re.findall(r"/\*([0-9a-f]{4,})\*/\s+(.*?) ;", assembly)
    return [(int(address, 16), text) for address, text in found]


def opcode(text: str) -> str:
    """Such as `F2F.F64.F32`, without the predicate before it and the operands behind it."""
    return re.sub(r"^@\S+\s+", "", text).split(maxsplit=1)[0]


def target(text: str) -> int | None:
    """Where a branch leads; None for anything else."""
    found = re.search(r"\bBRA\S* .*?(0x[0-9a-f]+)", text)
    return int(found[1], 16) if found else None


def width(text: str) -> int:
    """Bits of an access to global memory; 0 for anything else."""
    access = re.search(r"\b(?:LDG|STG)\.E(\S*)", text)
    if access is None:
        return 0
    explicit = re.search(r"\.[US]?(8|16|64|128)\b", access[1])
    return int(explicit[1]) if explicit else 32
