"""One launch of a kernel on machine.cpp, and what to say where it stopped."""

from __future__ import annotations

import ctypes
from collections import Counter

import numpy as np

from tests.emulator import native
from tests.emulator.decode import SPACES, Decoded
from tests.emulator.memory import Arguments, Memory, MemoryFault
from tests.emulator.ptx import Kernel, PTXError

# As machine.cpp numbers what went wrong.
(_FINE, _UNKNOWN, _UNWRITTEN, _MISALIGNED, _OUTSIDE, _POISON, _TWICE, _RACE, _DEADLOCK, _PART,
 _MEMBERS, _ENDLESS) = range(12)  # fmt: skip
_SPACE = {number: name for name, number in SPACES.items()}
_MOST_BLOCKS = 2**16 - 2


class Machine:
    """One launch of a kernel.

    Args:
        kernel: the parsed PTX.
        grid: blocks in x, y and z.
        arguments: parameter values in order: integers (addresses included), or a struct's bytes.
        memory: the global memory.
        shared_bytes: size of each block's shared memory, beside declared variables.
        limit: basic blocks after which a block of threads counts as hung.

    Attributes:
        executed: how often a block ran each opcode.
    """

    def __init__(
        self,
        kernel: Kernel,
        grid: tuple[int, int, int],
        arguments: list[int | bytes],
        memory: Memory,
        shared_bytes: int = 0,
        limit: int = 20_000,
    ) -> None:
        if len(arguments) != len(kernel.params):
            raise PTXError(
                f"{kernel.name} takes {len(kernel.params)} arguments, not {len(arguments)}"
            )
        if kernel.threads % 32 or kernel.threads > 1024 or np.prod(grid) > _MOST_BLOCKS:
            raise PTXError(
                f"{kernel.name} is launched with {grid} blocks of {kernel.threads} threads: only "
                f"whole warps, 1,024 threads and {_MOST_BLOCKS:,} blocks are known"
            )
        self.kernel, self.memory, self.grid, self.limit = kernel, memory, grid, limit
        self.arguments = Arguments(kernel.params, arguments)
        self.decoded = decoded(kernel, self.arguments.starts)
        self.shared_bytes = (shared_bytes + kernel.shared_bytes + 15) // 16 * 16
        self.executed: Counter[str] = Counter()

    def run(self) -> None:
        """Runs all threads to their end.

        Raises:
            PTXError: an instruction is unknown, a barrier cannot be passed, or the launch
                does not end.
            MemoryFault: an access that a GPU would not survive, or not survive alike.
        """
        library, fault = native.library(), native.Fault()
        counts = np.zeros(len(self.decoded.opcodes), np.uint64)
        refresh = native.REFRESH(self.memory.refresh)
        poison = self.memory.poisoned()
        run = native.Run(
            (ctypes.c_int64 * 3)(*self.grid), self.shared_bytes, self.limit,
            self.arguments.memory.ctypes.data, self.arguments.inside.ctypes.data,
            len(self.arguments.memory), ctypes.addressof(self.memory.extents), refresh,
            ctypes.addressof(poison), len(self.memory.poison), counts.ctypes.data,
        )  # fmt: skip
        state = library.emulator_run(self.decoded.program, run, fault)
        try:
            self.memory.traffic.read(state)
        finally:
            library.emulator_forget(state)
        for opcode, count in zip(self.decoded.opcodes, counts.tolist(), strict=True):
            if count:
                self.executed[opcode] += count
        if fault.code != _FINE:
            raise self._error(fault)

    def _error(self, fault: native.Fault) -> Exception:
        what = "store" if fault.store else "load"
        if fault.code == _UNKNOWN:
            return PTXError(self.decoded.unknown[fault.instruction])
        if fault.code == _UNWRITTEN:
            return PTXError(f"{self.decoded.slots[fault.slot]} is read before it is written")
        if fault.code in (_MISALIGNED, _OUTSIDE) and _SPACE[fault.space] == "shared":
            how = "misaligned" if fault.code == _MISALIGNED else "out of bounds"
            return PTXError(f"a shared access is {how}")
        if fault.code in (_MISALIGNED, _OUTSIDE) and _SPACE[fault.space] == "param":
            how = "misaligned" if fault.code == _MISALIGNED else "inside none of them"
            return MemoryFault(f"a load of {fault.bytes} bytes of arguments is {how}")
        if fault.code == _MISALIGNED:
            return MemoryFault(f"a {what} of {fault.bytes} bytes is misaligned")
        if fault.code == _OUTSIDE:
            where = hex(fault.address % 2**64)
            return MemoryFault(f"a {what} of {fault.bytes} bytes at {where} is inside no tensor")
        text = self.kernel.code[fault.instruction].text if self.kernel.code else ""
        return {
            _POISON: MemoryFault("a load reads what nobody wrote"),
            _TWICE: MemoryFault("one address is stored twice in a launch"),
            _RACE: MemoryFault("one block loads what another stores in the same launch"),
            _DEADLOCK: PTXError("deadlock: a block's threads wait at different barriers"),
            _PART: PTXError("a warp shuffles while some of its threads are elsewhere"),
            _MEMBERS: PTXError(f"only shuffles of whole warps are known: {text}"),
            _ENDLESS: PTXError(f"{self.kernel.name} did not end after {self.limit} basic blocks"),
        }[fault.code]


def decoded(kernel: Kernel, starts: dict[str, int]) -> Decoded:
    """A kernel's program, decoded once."""
    if kernel.decoded is None:
        kernel.decoded = Decoded(kernel, starts)
    return kernel.decoded
