"""What an assembler made of a kernel: registers, spills, and the accesses of its widest loop.

The full-chunk path is a loop of its own, unmasked; its accesses are those of the loop that moves
the most bytes by 128 bits at a time. Of a step that is no sync step the slow weights' part is
jumped over; here it counts.
"""

from __future__ import annotations

import re
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.device_code import sass
from benchmarks.device_code.sass import Code

_BARRIER = -1  # among widths


class MachineCode(NamedTuple):
    """One compiled kernel.

    Attributes:
        registers: per thread.
        spills: registers that went through memory.
        stack: bytes per thread.
        occupancy: which part of the threads a multiprocessor can hold will fit, by registers.
        accesses: how many of each width, in bits, a thread makes in the full-chunk path.
        barriers: how many it waits at there.
        bytes_per_parameter: what these move, for one element of the parameter.
        code: every instruction; none for AMD.
    """

    registers: int
    spills: int
    stack: int
    occupancy: float
    accesses: dict[int, int]
    barriers: int
    bytes_per_parameter: float
    code: Code

    def figures(self) -> dict[str, Any]:
        """All but the code, by name."""
        return {name: value for name, value in self._asdict().items() if name != "code"}


class _Usage(NamedTuple):
    """The first half of MachineCode."""

    registers: int
    spills: int
    stack: int
    occupancy: float


def read(kernel: Any, target: Any, elements: int) -> MachineCode:
    """Reads what Triton compiled.

    Args:
        kernel: what `triton.compile` returned.
        target: the GPUTarget it was compiled for.
        elements: that a program takes in a turn of its loop.
    """
    threads = kernel.metadata.num_warps * target.warp_size
    if target.backend == "cuda":
        return _of_nvidia(kernel.asm["cubin"], kernel.asm["ptx"], threads, elements)
    return _of_amd(kernel.asm["amdgcn"], threads, elements)


def read_cubin(path: Path, threads: int) -> Iterator[tuple[str, MachineCode]]:
    """Reads every kernel that nvcc compiled into a file, under its mangled name.

    What its loop moves is given for a turn, however many elements of the parameter that steps.

    Args:
        path: of the cubin.
        threads: per block.
    """
    usage = dict(re.findall(r"Function (\w+):\s+(.*)", sass.cuobjdump("-res-usage", str(path))))
    for text in sass.cuobjdump("-sass", str(path)).split("Function : ")[1:]:
        name = text.split(maxsplit=1)[0]
        code = sass.instructions(text)
        loops = _loops(code)
        turns = [Counter(map(_counted, _own(loop, loops, code))) for loop in loops]
        yield name, _described(_usage(usage[name], code, threads), turns, 1, code)


def _own(loop: tuple[int, int], loops: list[tuple[int, int]], code: Code) -> list[str]:
    """A loop's instructions, but for those of the loops within it."""
    within = [inner for inner in loops if loop[0] <= inner[0] and inner[1] < loop[1]]
    return [
        text
        for at, text in code
        if loop[0] <= at <= loop[1] and not any(first <= at <= end for first, end in within)
    ]


def _of_nvidia(cubin: bytes, ptx: str, threads: int, elements: int) -> MachineCode:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        usage = sass.cuobjdump("-res-usage", file.name)
        code = sass.instructions(sass.cuobjdump("-sass", file.name))
    turns = [
        _one_turn([t for at, t in code if first <= at <= end], ptx) for first, end in _loops(code)
    ]
    return _described(_usage(usage, code, threads), turns, threads / elements, code)


def _loops(code: Code) -> list[tuple[int, int]]:
    """First and last address of every loop: where a branch leads back."""
    return [(to, end) for end, text in code if (to := sass.target(text)) is not None and to < end]


def _usage(usage: str, code: Code, threads: int) -> _Usage:
    registers, stack = (int(re.search(rf"{key}:(\d+)", usage)[1]) for key in ("REG", "STACK"))  # type: ignore[index]
    spills = sum("STL" in text or "LDL" in text for _, text in code)
    # 65,536 registers in a multiprocessor, given to a warp by 256; 64 warps; whole blocks.
    per_warp = -(-registers * 32 // 256) * 256
    warps = min(64, 65536 // per_warp // (threads // 32) * (threads // 32))
    return _Usage(registers, spills, stack, warps / 64)


def _one_turn(loop: list[str], ptx: str) -> Counter[int]:
    """Accesses by width; ptxas may do several turns of the PTX's loop in one."""
    accesses = Counter(map(_counted, loop))
    wide = sum(sass.width(text) == 128 and "LDG" in text for text in loop)
    turns = max(1, wide // max(1, ptx.count("ld.global.v4.b32")))
    return Counter({width: n // turns for width, n in accesses.items()})


def _of_amd(assembly: str, threads: int, elements: int) -> MachineCode:
    def figure(name: str) -> int:
        found = re.search(rf"{name}:?\s+(\d+)", assembly)
        assert found, name
        return int(found[1])

    widths = {"dwordx4": 128, "dwordx2": 64, "dword": 32}
    loops: dict[str, Counter[int]] = {}
    name = block = None
    for line in assembly.splitlines():
        label = re.match(r"\.L(BB\d+_\d+):|; %bb\.\d+:", line)
        if label:
            name, block = label[1], None
        if "Loop Header: " in line:  # beside the label, or below it
            block = name
        elif inside := re.search(r"in Loop: Header=(BB\d+_\d+)", line):
            block = inside[1]
        access = re.match(r"\s+global_(?:load|store)_(\w+)", line)
        if access and block:
            loops.setdefault(block, Counter())[widths.get(access[1], 16)] += 1
        elif block and "s_barrier" in line:
            loops.setdefault(block, Counter())[_BARRIER] += 1
    usage = _Usage(
        figure(r"\.vgpr_count"),
        figure(r"\.vgpr_spill_count"),
        figure(r"\.private_segment_fixed_size"),
        figure("; Occupancy") / 8,  # wavefronts that a SIMD unit holds
    )
    return _described(usage, list(loops.values()), threads / elements, [])


def _described(
    usage: _Usage, loops: list[Counter[int]], per_byte: float, code: Code
) -> MachineCode:
    """A kernel; `per_byte` is what a byte in a thread's turn means for one parameter."""
    widest = max(loops, key=lambda loop: (loop[128] > 0, _moved(loop)), default=Counter())
    accesses = {width: n for width, n in sorted(widest.items(), reverse=True) if width > 0}
    return MachineCode(*usage, accesses, widest[_BARRIER], _moved(widest) * per_byte, code)


def _counted(text: str) -> int:
    """The width of an access, in bits; 0 of an instruction that is none."""
    return _BARRIER if text.startswith("BAR.SYNC") or " BAR.SYNC" in text else sass.width(text)


def _moved(loop: Counter[int]) -> int:
    return sum(width // 8 * n for width, n in loop.items() if width > 0)
