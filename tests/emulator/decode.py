"""From parsed PTX to what machine.cpp runs: every operand a slot, every meaning a number.

What cannot be run is an error when a thread reaches it, and not before: it becomes an
instruction without a meaning, and its message is kept.
"""

from __future__ import annotations

import ctypes
import functools
from dataclasses import dataclass

import numpy as np

from tests.emulator import native
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

COMPUTE, LOAD, STORE, PACK, UNPACK, SHUFFLE, BRANCH, RETURN, BARRIER, UNKNOWN, REDUCE = range(11)
SPACES = {"global": 0, "shared": 1, "param": 2}
_MODES = {"bfly": 0, "down": 1, "up": 2, "idx": 3}
_REDUCTIONS = {"redux.sync.add.s32": 0, "redux.sync.max.u32": 1}
_ACCESS = {"b8": 1, "b16": 2, "b32": 4, "b64": 8, "f32": 4, "f64": 8, "u8": 1, "u16": 2, "u32": 4,
           "u64": 8}  # fmt: skip
_SPECIAL = {"%tid.x": "thread", "%laneid": "lane", "%ntid.x": "threads_x", "%nctaid.x": "blocks_x"}
_BLOCK = ("%ctaid.x", "%ctaid.y", "%ctaid.z")

_GARBAGE = 0xDEADBEEFDEADBEEF


@dataclass(frozen=True)
class Opcode:
    """An instruction that computes: its number, and the kinds of its operands."""

    number: int
    to: tuple[str, ...]
    sources: tuple[str, ...]


def bytes_of(kind: str) -> int:
    """Of a register that holds a value of this kind."""
    if kind in ("pred", "pair"):
        return 1 if kind == "pred" else 8
    return int(kind.lstrip("busf")) // 8


@functools.cache
def table() -> dict[str, Opcode]:
    """The instructions that compute, by their names."""
    library = native.library()
    opcodes = {}
    for number in range(library.emulator_opcodes()):
        name = library.emulator_opcode_name(number).decode()
        to = tuple(library.emulator_opcode_to(number).decode().split())
        sources = tuple(library.emulator_opcode_sources(number).decode().split())
        assert name not in opcodes, name
        opcodes[name] = Opcode(number, to, sources)
    return opcodes


class Decoded:
    """A kernel as machine.cpp takes it.

    Attributes:
        program: the struct; it points into arrays that are held here.
        opcodes: of each instruction, as written.
        unknown: what to say of an instruction that cannot be run, by its place.
        slots: what each slot is called in a message.
    """

    def __init__(self, kernel: Kernel, starts: dict[str, int]) -> None:
        self.kernel, self._starts = kernel, starts
        self.opcodes = [one.opcode for one in kernel.code]
        self.unknown: dict[int, str] = {}
        self.slots: list[str] = []
        self._widths: list[int] = []
        self._values: dict[int, int] = {}
        self._found: dict[tuple[object, int], int] = {}
        self._special: set[int] = set()
        self._bin = self._slot("_", 8)  # what is written there is thrown away
        self._assigned = _destinations(kernel)
        code = (native.Instruction * max(1, len(kernel.code)))()
        for place, instruction in enumerate(kernel.code):
            try:
                self._instruction(code[place], instruction)
            except PTXError as error:
                self.unknown[place] = str(error)
                code[place].kind = UNKNOWN
        for place in self._leaders():
            if place < len(kernel.code):
                code[place].leader = 1
        self._code = code
        self.program = self._program()

    def _program(self) -> native.Program:
        count = len(self._widths)
        self._arrays = (
            np.array(self._widths, np.int32),
            np.array([self._values.get(i, 0) for i in range(count)], np.uint64),
            np.array([i in self._values or i in self._special for i in range(count)], np.uint8),
        )
        program = native.Program(
            ctypes.addressof(self._code), len(self.opcodes), *(a.ctypes.data for a in self._arrays),
            count, self.kernel.threads,
        )  # fmt: skip
        for name, field in _SPECIAL.items():
            setattr(program, field, self._found.get((name, 4), -1))
        for i, name in enumerate(_BLOCK):
            program.block[i] = self._found.get((name, 4), -1)
        return program

    def _leaders(self) -> set[int]:
        code = self.kernel.code
        names = [one.opcode.split(".")[0] for one in code]
        after = {i + 1 for i, name in enumerate(names) if name in ("bra", "ret", "bar")}
        shuffles = {i for i, name in enumerate(names) if name in ("shfl", "redux")}
        return after | shuffles | set(self.kernel.labels.values())

    # Instructions

    def _instruction(self, to: native.Instruction, one: Instruction) -> None:
        to.guard = -1
        name, *modifiers = one.opcode.split(".")
        if one.guard is not None:
            to.guard, to.negated = self._read(one.guard, "pred"), one.negated
        if one.opcode in ("bra", "bra.uni"):
            (label,) = _operands(one, 1)
            if not isinstance(label, Name) or label.name not in self.kernel.labels:
                raise PTXError(f"unknown label: {one.text}")
            to.kind, to.offset = BRANCH, self.kernel.labels[label.name]
        elif one.opcode == "ret":
            _operands(one, 0)
            to.kind = RETURN
        elif one.opcode == "bar.sync":
            _operands(one, 1)
            to.kind = BARRIER
        elif name in ("ld", "st"):
            self._access(to, one, modifiers)
        elif name == "shfl":
            self._shuffle(to, one)
        elif one.opcode in _REDUCTIONS:
            self._reduce(to, one)
        elif name == "mov" and any(isinstance(o, tuple) for o in one.operands):
            self._pack(to, one)
        else:
            self._compute(to, one)

    def _compute(self, to: native.Instruction, one: Instruction) -> None:
        opcode = one.opcode
        if opcode in ("min.f32", "max.f32") and len(one.operands) == 4:
            opcode = opcode.replace(".", ".3.")
        known = table().get(opcode)
        if known is None:
            raise PTXError(f"unknown instruction: {one.text}")
        destination, *sources = _operands(one, 1 + len(known.sources))
        places = destination if len(known.to) > 1 else (destination,)
        if not isinstance(places, tuple) or len(places) != len(known.to):
            raise PTXError(f"wrong destination: {one.text}")
        to.kind, to.function = COMPUTE, known.number
        to.outputs, to.inputs = len(known.to), len(sources)
        for i, (source, kind) in enumerate(zip(sources, known.sources, strict=True)):
            if one.opcode.startswith("cvt.") and self._is_wider(source, kind):
                to.take[i] = bytes_of(kind)
                kind = f"u{self.kernel.widths[source.name]}"
            to.operands[len(places) + i] = self._read(source, kind)
        for i, (place, kind) in enumerate(zip(places, known.to, strict=True)):
            to.operands[i] = self._written(place, kind)

    def _is_wider(self, source: Operand, kind: str) -> bool:
        """A conversion takes the lower bits of a register wider than its integer type."""
        return (
            isinstance(source, Register)
            and kind[0] in "su"
            and self.kernel.widths[source.name] > 8 * bytes_of(kind)
        )

    def _access(self, to: native.Instruction, one: Instruction, modifiers: list[str]) -> None:
        space, *vector, kind = modifiers if len(modifiers) > 1 else ["", ""]
        count = {"v2": 2, "v4": 4}.get(vector[0], 0) if len(vector) == 1 else 1 - len(vector)
        if space not in SPACES or count < 1 or kind not in _ACCESS:
            raise PTXError(f"unknown instruction: {one.text}")
        first, second = _operands(one, 2)
        loads = one.opcode.startswith("ld")
        address, registers = (second, first) if loads else (first, second)
        registers = registers if isinstance(registers, tuple) else (registers,)
        if len(registers) != count or not isinstance(address, Address):
            raise PTXError(f"wrong operands: {one.text}")
        if space == "param" and not loads:
            raise PTXError("arguments cannot be stored to")
        to.kind, to.space = LOAD if loads else STORE, SPACES[space]
        to.size, to.count, to.offset = _ACCESS[kind], count, address.offset
        if isinstance(address.base, Register):
            to.operands[0] = self._read(address.base, "u32" if space == "shared" else "u64")
        else:
            to.operands[0] = self._constant(self._variable(address.base, space), 8)
        for i, register in enumerate(registers, 1):
            held = f"u{8 * to.size}"
            if kind[0] != "f" and space == "global" and isinstance(register, Register):
                # an integer may be held in a register that is wider
                held = f"u{max(8 * to.size, self.kernel.widths[register.name])}"
            place = self._written(register, held) if loads else self._read(register, held)
            to.operands[i] = place

    def _shuffle(self, to: native.Instruction, one: Instruction) -> None:
        """shfl.sync.<mode>.b32 d[|p], value, lane, clamp, members"""
        parts = one.opcode.split(".")
        if len(parts) != 4 or parts[1] != "sync" or parts[2] not in _MODES or parts[3] != "b32":
            raise PTXError(f"unknown instruction: {one.text}")
        destination, *sources = _operands(one, 5)
        both = destination if isinstance(destination, tuple) else (destination, Name("_"))
        to.kind, to.mode = SHUFFLE, _MODES[parts[2]]
        to.operands[0] = self._written(both[0], "u32")
        to.operands[1] = self._written(both[1], "pred")
        for i, source in enumerate(sources, 2):
            to.operands[i] = self._read(source, "u32")

    def _reduce(self, to: native.Instruction, one: Instruction) -> None:
        """redux.sync.<operation>.<type> d, value, members"""
        destination, *sources = _operands(one, 3)
        to.kind, to.mode = REDUCE, _REDUCTIONS[one.opcode]
        to.operands[0] = self._written(destination, "u32")
        for i, source in enumerate(sources, 1):
            to.operands[i] = self._read(source, "u32")

    def _pack(self, to: native.Instruction, one: Instruction) -> None:
        """mov between a register and a vector of narrower ones."""
        destination, source = _operands(one, 2)
        whole = {"mov.b32": 32, "mov.b64": 64}.get(one.opcode)
        unpacks = isinstance(destination, tuple)
        parts = destination if unpacks else source
        if whole is None or unpacks == isinstance(source, tuple):
            raise PTXError(f"unknown instruction: {one.text}")
        width = whole // len(parts)
        to.kind, to.size, to.count = (UNPACK if unpacks else PACK), width // 8, len(parts)
        if unpacks:
            to.operands[0] = self._read(source, f"u{whole}")
        else:
            to.operands[0] = self._written(destination, f"u{whole}")
        for i, part in enumerate(parts, 1):
            kind = f"u{width}"
            if not unpacks and isinstance(part, Register) and part.name not in self._assigned:
                # A half that nobody sets: LLVM's way to say that nobody looks at it. If somebody
                # does, this shows.
                to.operands[i] = self._constant(_GARBAGE, bytes_of(kind))
            else:
                to.operands[i] = self._written(part, kind) if unpacks else self._read(part, kind)

    # Operands

    def _slot(self, name: object, width: int) -> int:
        key = (name, width)
        if key not in self._found:
            self._found[key] = len(self._widths)
            self._widths.append(width)
            self.slots.append(str(name))
        return self._found[key]

    def _constant(self, value: int, width: int) -> int:
        slot = self._slot(("constant", value), width)
        self._values[slot] = value % 2 ** (8 * width)
        return slot

    def _variable(self, name: str, *spaces: str) -> int:
        """Where a parameter, or a variable in shared memory, begins."""
        if "param" in spaces and name in self._starts:
            return self._starts[name]
        if "shared" in spaces and name in self.kernel.shared:
            return self.kernel.shared[name]
        raise PTXError(f"unknown operand {name}")

    def _register(self, register: Register, kind: str) -> int:
        width = self.kernel.widths[register.name]
        held = 1 if width == 1 else width // 8
        if held != bytes_of(kind) or (width == 1) != (kind == "pred"):
            raise PTXError(f"{register.name} is no register for {kind}")
        return self._slot(register.name, held)

    def _read(self, operand: Operand, kind: str) -> int:
        """The slot of what an instruction takes as this kind."""
        if isinstance(operand, Immediate):
            return self._constant(operand.bits, bytes_of(kind))
        if isinstance(operand, Name):
            if operand.name in _SPECIAL or operand.name in _BLOCK:
                if bytes_of(kind) != 4:
                    raise PTXError(f"{operand.name} is no register for {kind}")
                slot = self._slot(operand.name, 4)
                self._special.add(slot)
                return slot
            spaces = {"u32": ("shared",), "u64": ("param",)}
            return self._constant(
                self._variable(operand.name, *spaces.get(kind, ())), bytes_of(kind)
            )
        if not isinstance(operand, Register):
            raise PTXError(f"{operand} is no operand of this instruction")
        return self._register(operand, kind)

    def _written(self, operand: Operand, kind: str) -> int:
        """The slot of a destination."""
        if operand == Name("_"):
            return self._slot("_", bytes_of(kind))
        if not isinstance(operand, Register):
            raise PTXError(f"{operand} is no destination")
        return self._register(operand, kind)


def _destinations(kernel: Kernel) -> set[str]:
    """The registers that any instruction sets."""
    found: set[str] = set()
    for one in kernel.code:
        if one.operands and one.opcode.split(".")[0] not in ("st", "bra", "bar"):
            first = one.operands[0]
            parts = first if isinstance(first, tuple) else (first,)
            found.update(part.name for part in parts if isinstance(part, Register))
    return found


def _operands(instruction: Instruction, count: int) -> tuple[Operand, ...]:
    if len(instruction.operands) != count:
        raise PTXError(f"expected {count} operands: {instruction.text}")
    return instruction.operands
