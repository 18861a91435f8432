"""Running a kernel: all threads of all blocks side by side, one basic block at a time.

Each register is one numpy array with an entry per thread. Each thread has a program counter;
the threads at the lowest one run next, under a mask. `bar.sync` holds threads until their
block has arrived, a shuffle until their warp has.
"""

from __future__ import annotations

from collections import Counter

import numpy as np

from tests.emulator.memory import Arguments, Memory
from tests.emulator.opcodes import PAIR, TABLE, TYPES
from tests.emulator.ptx import (
    Address,
    Immediate,
    Instruction,
    Kernel,
    Name,
    Operand,
    PTXError,
    Register,
)

WARP = 32
_STORAGE = {1: np.bool_, 8: np.uint8, 16: np.uint16, 32: np.uint32, 64: np.uint64}
_ACCESS = {"b16": 2, "b32": 4, "b64": 8, "f32": 4, "f64": 8, "u32": 4, "u64": 8, "u16": 2}
Array = np.ndarray


class Machine:
    """One launch of a kernel.

    Args:
        kernel: the parsed PTX.
        grid: blocks in x, y and z.
        arguments: parameter values in order: integers (addresses included), or a struct's bytes.
        memory: the global memory.
        shared_bytes: size of each block's shared memory, beside declared variables.
        limit: basic blocks after which a launch counts as hung.
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
        self.kernel, self.memory, self.limit = kernel, memory, limit
        self.blocks = grid[0] * grid[1] * grid[2]
        self.threads = self.blocks * kernel.threads
        self.arguments = Arguments(kernel.params, arguments)
        self.registers: dict[str, Array] = {}
        self.block = np.arange(self.threads) // kernel.threads
        lane = (np.arange(self.threads) % kernel.threads).astype(np.uint32)
        self.special = {
            "%tid.x": lane,
            "%laneid": lane % WARP,
            "%ctaid.x": (self.block % grid[0]).astype(np.uint32),
            "%ctaid.y": (self.block // grid[0] % grid[1]).astype(np.uint32),
            "%ctaid.z": (self.block // (grid[0] * grid[1])).astype(np.uint32),
            "%ntid.x": np.full(self.threads, kernel.threads, np.uint32),
            "%nctaid.x": np.full(self.threads, grid[0], np.uint32),
        }
        shared_bytes += kernel.shared_bytes
        self.shared = np.zeros((self.blocks, (shared_bytes + 15) // 16 * 16), np.uint8)
        self.pc = np.zeros(self.threads, np.int64)
        self.waiting = np.zeros(self.threads, bool)  # at a barrier
        self.gathering = np.zeros(self.threads, bool)  # before a shuffle
        self.shuffles = {i for i, one in enumerate(kernel.code) if one.opcode.startswith("shfl")}
        self.leaders = self._leaders()
        self.executed: Counter[str] = Counter()

    def run(self) -> None:
        """Runs all threads to their end.

        Raises:
            PTXError: an instruction is unknown, a barrier cannot be passed, or the launch
                does not end.
            MemoryFault: an access that a GPU would not survive, or not survive alike.
        """
        end = len(self.kernel.code)
        with np.errstate(all="ignore"):
            for _ in range(self.limit):
                ready = (self.pc < end) & ~self.waiting & ~self.gathering
                if ready.any():
                    at = int(self.pc[ready].min())
                    here = ready & (self.pc == at)
                    if at in self.shuffles:
                        here = self._gather(at, here)
                    if here.any():
                        self._basic_block(at, here)
                elif self.waiting.any():
                    self._pass_barrier()
                elif self.gathering.any():
                    raise PTXError("a warp shuffles while some of its threads are elsewhere")
                else:
                    self.memory.finish()
                    return
        raise PTXError(f"{self.kernel.name} did not end after {self.limit} basic blocks")

    def _leaders(self) -> set[int]:
        after = {
            i + 1
            for i, instruction in enumerate(self.kernel.code)
            if instruction.opcode.split(".")[0] in ("bra", "ret", "bar")
        }
        return after | self.shuffles | set(self.kernel.labels.values())

    def _gather(self, at: int, arrived: Array) -> Array:
        """Which threads may shuffle: those of warps that are all here. The others wait."""
        here = arrived | (self.gathering & (self.pc == at))
        whole = np.repeat(here.reshape(-1, WARP).all(1), WARP)
        self.gathering[here] = ~whole[here]
        return whole

    def _basic_block(self, at: int, mask: Array) -> None:
        while True:
            instruction = self.kernel.code[at]
            active = mask
            if instruction.guard is not None:
                guard = self._read(instruction.guard, "pred")
                active = mask & (~guard if instruction.negated else guard)
            self.executed[instruction.opcode] += 1
            self.pc[mask] = at + 1
            self._execute(instruction, active)
            at += 1
            if at in self.leaders or at >= len(self.kernel.code):
                return

    def _execute(self, instruction: Instruction, active: Array) -> None:
        name, *modifiers = instruction.opcode.split(".")
        if instruction.opcode in ("bra", "bra.uni"):
            (label,) = self._operands(instruction, 1)
            self.pc[active] = self.kernel.labels[label.name]
        elif instruction.opcode == "ret":
            self._operands(instruction, 0)
            self.pc[active] = len(self.kernel.code)
        elif instruction.opcode == "bar.sync":
            self._operands(instruction, 1)
            self.waiting |= active
        elif not active.any():
            return
        elif name in ("ld", "st"):
            self._access(instruction, name, modifiers, active)
        elif name == "shfl":
            self._shuffle(instruction, active)
        elif name == "mov" and any(isinstance(o, tuple) for o in instruction.operands):
            self._pack(instruction, active)
        else:
            self._compute(instruction, active)

    def _compute(self, instruction: Instruction, active: Array) -> None:
        known = TABLE.get(instruction.opcode)
        if known is None:
            raise PTXError(f"unknown instruction: {instruction.text}")
        to, *sources = self._operands(instruction, 1 + len(known.sources))
        read = self._read_chopped if instruction.opcode.startswith("cvt.") else self._read
        values = [read(s, t) for s, t in zip(sources, known.sources, strict=True)]
        result = known.function(*values)
        if len(known.to) == 1:
            self._write(to, known.to[0], result, active)
        else:
            if not isinstance(to, tuple) or len(to) != len(known.to):
                raise PTXError(f"wrong destination: {instruction.text}")
            for register, kind, value in zip(to, known.to, result, strict=True):
                self._write(register, kind, value, active)

    def _access(
        self, instruction: Instruction, name: str, modifiers: list[str], active: Array
    ) -> None:
        space, *vector, kind = modifiers
        count = {"v2": 2, "v4": 4}.get(vector[0], 0) if len(vector) == 1 else 1 - len(vector)
        if space not in ("param", "global", "shared") or count < 1 or kind not in _ACCESS:
            raise PTXError(f"unknown instruction: {instruction.text}")
        first, second = self._operands(instruction, 2)
        address, registers = (second, first) if name == "ld" else (first, second)
        registers = registers if isinstance(registers, tuple) else (registers,)
        if len(registers) != count or not isinstance(address, Address):
            raise PTXError(f"wrong operands: {instruction.text}")
        at = self._addresses(address, space)[active]
        size = _ACCESS[kind]
        if space == "shared":
            self._shared_access(name, registers, at, size, active)
            return
        if space == "param":
            self._load_arguments(name, registers, at, size, active)
            return
        self.memory.check_alignment(at, size * count, "load" if name == "ld" else "store")
        for i, register in enumerate(registers):
            place = at + np.uint64(i * size)
            held = self._register_kind(register, kind)
            if name == "ld":  # zeros go before an integer in a wider register
                value = np.zeros(self.threads, TYPES[held])
                value[active] = self.memory.load(place, size)
                self._write(register, held, value, active)
            else:
                value = self._read(register, held).astype(TYPES[f"u{8 * size}"])
                self.memory.store(place, size, value[active])

    def _register_kind(self, register: Operand, kind: str) -> str:
        """As what an access takes a register: integers may be held in one that is wider."""
        size = 8 * _ACCESS[kind]
        if kind[0] == "f" or not isinstance(register, Register):
            return f"u{size}"
        return f"u{max(size, self.kernel.widths[register.name])}"

    def _addresses(self, address: Address, space: str) -> Array:
        if isinstance(address.base, Register):
            base = self._read(address.base, "u32" if space == "shared" else "u64")
            base = base.astype(np.uint64)
        else:
            base = np.full(self.threads, self._variable(address.base, space), np.uint64)
        return base + np.uint64(address.offset & (2**64 - 1))

    def _variable(self, name: str, *spaces: str) -> int:
        """Where a parameter, or a variable in shared memory, begins."""
        if "param" in spaces and name in self.arguments.starts:
            return self.arguments.starts[name]
        if "shared" in spaces and name in self.kernel.shared:
            return self.kernel.shared[name]
        raise PTXError(f"unknown operand {name}")

    def _load_arguments(
        self, name: str, registers: tuple[Operand, ...], at: Array, size: int, active: Array
    ) -> None:
        if name != "ld":
            raise PTXError("arguments cannot be stored to")
        self.arguments.check(at, size * len(registers))
        for i, register in enumerate(registers):
            value = np.zeros(self.threads, TYPES[f"u{8 * size}"])
            value[active] = self.arguments.load(at + np.uint64(i * size), size)
            self._write(register, f"u{8 * size}", value, active)

    def _shared_access(
        self, name: str, registers: tuple[Operand, ...], at: Array, size: int, active: Array
    ) -> None:
        if (at % np.uint64(size * len(registers))).any():
            raise PTXError("a shared access is misaligned")
        if (at + np.uint64(size * len(registers)) > self.shared.shape[1]).any():
            raise PTXError("a shared access is out of bounds")
        words = self.shared.view(TYPES[f"u{8 * size}"])
        for i, register in enumerate(registers):
            index = (self.block[active], (at // np.uint64(size)).astype(np.int64) + i)
            if name == "ld":
                value = np.zeros(self.threads, words.dtype)
                value[active] = words[index]
                self._write(register, f"u{8 * size}", value, active)
            else:
                words[index] = self._read(register, f"u{8 * size}")[active]

    def _shuffle(self, instruction: Instruction, active: Array) -> None:
        """shfl.sync.<mode>.b32 d[|p], value, lane, clamp, members"""
        modes = {"bfly", "down", "up", "idx"}
        parts = instruction.opcode.split(".")
        if len(parts) != 4 or parts[1] != "sync" or parts[2] not in modes or parts[3] != "b32":
            raise PTXError(f"unknown instruction: {instruction.text}")
        to, source, by, clamp, members = self._operands(instruction, 5)
        if (self._read(members, "u32")[active] != 0xFFFFFFFF).any():
            raise PTXError(f"only shuffles of whole warps are known: {instruction.text}")
        if (active.reshape(-1, WARP).any(1) != active.reshape(-1, WARP).all(1)).any():
            raise PTXError("a warp shuffles while some of its threads are elsewhere")
        bounds = self._read(clamp, "u32").astype(np.int64)
        lane = np.arange(self.threads) % WARP
        segment = (bounds >> 8) & 0x1F
        low, high = lane & segment, (lane & segment) | (bounds & 0x1F & ~segment)
        offset = self._read(by, "u32").astype(np.int64) & 0x1F
        mode = parts[2]
        if mode == "up":
            other, valid = lane - offset, lane - offset >= high
        else:
            other = {"bfly": lane ^ offset, "down": lane + offset}.get(mode)
            other = low | (offset & ~segment) if other is None else other
            valid = other <= high
        other = np.where(valid, other, lane) + np.arange(self.threads) // WARP * WARP
        value = self._read(source, "u32")[other]
        if isinstance(to, tuple):
            self._write(to[1], "pred", valid, active)
            to = to[0]
        self._write(to, "u32", value, active)

    def _pack(self, instruction: Instruction, active: Array) -> None:
        """mov between a register and a vector of narrower ones."""
        to, source = self._operands(instruction, 2)
        whole = {"mov.b32": 32, "mov.b64": 64}.get(instruction.opcode)
        parts = to if isinstance(to, tuple) else source
        if (
            whole is None
            or not isinstance(parts, tuple)
            or isinstance(to, tuple) == isinstance(source, tuple)
        ):
            raise PTXError(f"unknown instruction: {instruction.text}")
        width = whole // len(parts)
        if isinstance(to, tuple):
            value = self._read(source, f"u{whole}")
            for i, register in enumerate(to):
                piece = (value >> TYPES[f"u{whole}"](i * width)).astype(TYPES[f"u{width}"])
                self._write(register, f"u{width}", piece, active)
        else:
            value = np.zeros(self.threads, TYPES[f"u{whole}"])
            for i, register in enumerate(parts):
                piece = self._read(register, f"u{width}").astype(value.dtype)
                value |= piece << value.dtype.type(i * width)
            self._write(to, f"u{whole}", value, active)

    def _pass_barrier(self) -> None:
        """Lets every block go on whose running threads all wait at the same barrier."""
        running = self.pc < len(self.kernel.code)
        for block in np.unique(self.block[self.waiting]):
            here = running & (self.block == block)
            if not self.waiting[here].all() or len(np.unique(self.pc[here])) > 1:
                raise PTXError("deadlock: a block's threads wait at different barriers")
        self.waiting[:] = False

    # Operands

    def _operands(self, instruction: Instruction, count: int) -> tuple:  # type: ignore[type-arg]
        if len(instruction.operands) != count:
            raise PTXError(f"expected {count} operands: {instruction.text}")
        return instruction.operands

    def _read(self, operand: Operand, kind: str) -> Array:
        """An operand of every thread, as the type an instruction takes it for."""
        if isinstance(operand, Immediate):
            dtype = np.dtype(np.uint64 if kind == PAIR else TYPES[kind])
            bits = operand.bits & (2 ** (8 * dtype.itemsize) - 1)
            raw = np.full(self.threads, bits, _STORAGE[8 * dtype.itemsize])
            return raw.view(dtype) if kind != PAIR else _as_pair(raw)
        if isinstance(operand, Name):
            if operand.name in self.special:
                return self.special[operand.name].view(TYPES[kind])
            spaces = {"u32": ("shared",), "b32": ("shared",), "u64": ("param",), "b64": ("param",)}
            start = self._variable(operand.name, *spaces.get(kind, ()))
            return np.full(self.threads, start, TYPES[kind])
        if not isinstance(operand, Register):
            raise PTXError(f"{operand} is no operand of this instruction")
        if operand.name not in self.registers:
            raise PTXError(f"{operand.name} is read before it is written")
        raw = self.registers[operand.name]
        if kind == PAIR:
            return _as_pair(raw)
        dtype = np.dtype(TYPES[kind])
        if raw.dtype.itemsize != dtype.itemsize:
            raise PTXError(f"{operand.name} is no register for {kind}")
        return raw.view(dtype)

    def _read_chopped(self, operand: Operand, kind: str) -> Array:
        """As _read; of a register wider than an integer type, its lower bits."""
        if isinstance(operand, Register) and kind[0] in "su":
            width = self.kernel.widths[operand.name]
            if width > int(kind[1:]):
                return self._read(operand, f"u{width}").astype(TYPES[kind])
        return self._read(operand, kind)

    def _write(self, operand: Operand, kind: str, value: object, active: Array) -> None:
        if operand == Name("_"):  # what is written there is thrown away
            return
        if not isinstance(operand, Register):
            raise PTXError(f"{operand} is no destination")
        width = self.kernel.widths[operand.name]
        storage = np.dtype(_STORAGE[width])
        raw = np.ascontiguousarray(value)
        if kind == PAIR:
            raw = raw.reshape(-1, 2).view(np.uint64)[:, 0]
        dtype = np.dtype(np.uint64 if kind == PAIR else TYPES[kind])
        if dtype.itemsize != storage.itemsize:
            raise PTXError(f"{operand.name} is no register for {kind}")
        raw = raw.astype(dtype, copy=False) if kind != PAIR else raw
        raw = raw.view(storage)
        if operand.name in self.registers:
            np.copyto(self.registers[operand.name], raw, where=active)
        else:
            self.registers[operand.name] = np.where(active, raw, storage.type(0))


def _as_pair(raw: Array) -> Array:
    """[threads, 2] floats of 64-bit registers, the lower half first."""
    return np.ascontiguousarray(raw).view(np.float32).reshape(-1, 2)
