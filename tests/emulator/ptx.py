"""Reading PTX: a kernel's parameters, registers, labels and instructions."""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass, field
from typing import Any

_WIDTHS = {"pred": 1, "b8": 8, "b16": 16, "b32": 32, "b64": 64, "f32": 32, "f64": 64}
_WIDTHS |= {f"{sign}{width}": width for sign in "us" for width in (8, 16, 32, 64)}


class PTXError(Exception):
    """PTX this emulator cannot read or will not run."""


@dataclass(frozen=True)
class Register:
    """A register by its unique name."""

    name: str


@dataclass(frozen=True)
class Immediate:
    """A constant: the bits of a float, or an integer that takes the width of its use."""

    bits: int


@dataclass(frozen=True)
class Address:
    """[base + offset]; the base is a register or the name of a parameter or variable."""

    base: Register | str
    offset: int


@dataclass(frozen=True)
class Name:
    """A label, a special register or a variable."""

    name: str


Operand = Register | Immediate | Address | Name | tuple  # tuple: a vector of operands


@dataclass(frozen=True)
class Instruction:
    """One instruction: opcode as written, operands in order, guard if it has one."""

    opcode: str
    operands: tuple[Operand, ...]
    guard: Register | None
    negated: bool
    text: str


@dataclass
class Kernel:
    """A parsed .entry function."""

    name: str
    params: dict[str, int]  # name -> bytes
    threads: int  # per block, from .reqntid or .maxntid
    shared: dict[str, int] = field(default_factory=dict)  # variable -> where it begins
    shared_bytes: int = 0
    widths: dict[str, int] = field(default_factory=dict)  # register -> bits, 1 for predicates
    labels: dict[str, int] = field(default_factory=dict)
    code: list[Instruction] = field(default_factory=list)
    decoded: Any = None  # by decode.py, when it first runs


def kernels_of(text: str) -> dict[str, str]:
    """The text of each .entry function of a module, with what the module declares for all."""
    head, *bodies = re.split(r"^\.visible \.entry ", text, flags=re.MULTILINE)
    return {re.match(r"[\w$]+", body)[0]: f"{head}.visible .entry {body}" for body in bodies}  # type: ignore[index]


def parse(text: str) -> Kernel:
    """Reads the one .entry function of a PTX text.

    Raises:
        PTXError: something is written in a way this parser does not know.
    """
    text = re.sub(r"/\*.*?\*/", "", re.sub(r"//[^\n]*", "", text), flags=re.DOTALL)
    text = re.sub(r"^\s*\.(loc|file)\b[^\n]*$", "", text, flags=re.MULTILINE)
    head = re.search(r"\.entry\s+([\w$]+)\s*\((.*?)\)([^{]*)\{", text, re.DOTALL)
    if head is None:
        raise PTXError("there is no .entry function")
    threads = re.search(r"\.(?:req|max)ntid\s+(\d+)", head[3])
    if threads is None:
        raise PTXError("the number of threads per block (.reqntid, .maxntid) is not given")
    params = dict(_parameter(" ".join(param.split())) for param in _split(head[2]))
    kernel = Kernel(head[1], params, int(threads[1]))
    for align, name, size in re.findall(r"\.shared \.align (\d+) \.b8 ([\w$]+)\[(\d*)\];", text):
        start = -(-kernel.shared_bytes // int(align)) * int(align)
        kernel.shared[name] = start
        kernel.shared_bytes = start + int(size or "0")
    _Body(kernel, text[head.end() :]).read()
    return kernel


def _parameter(text: str) -> tuple[str, int]:
    """Name and bytes of a parameter: a number, an address or a struct."""
    text = re.sub(r" \.(ptr|global|align \d+)\b", "", text)
    match = re.fullmatch(r"\.param \.([bsuf]\d+) ([\w$]+)(?:\[(\d+)\])?", text)
    if match is None:
        raise PTXError(f"unknown parameter: {text}")
    return match[2], _WIDTHS[match[1]] // 8 * int(match[3] or "1")


class _Body:
    """Reads statements; a `{` where a statement begins opens a scope of registers."""

    def __init__(self, kernel: Kernel, text: str) -> None:
        self.kernel, self.text, self.at = kernel, text, 0
        self.scopes: list[dict[str, str]] = [{}]

    def read(self) -> None:
        while self.scopes:
            self.at += len(re.match(r"\s*", self.text[self.at :])[0])  # type: ignore[index]
            if self.at >= len(self.text):
                raise PTXError("the function does not end")
            label = re.compile(r"([\w$.]+):(?!:)").match(self.text, self.at)
            if self.text[self.at] == "{":
                self.scopes.append({})
                self.at += 1
            elif self.text[self.at] == "}":
                self.scopes.pop()
                self.at += 1
            elif label:
                self.kernel.labels[label[1]] = len(self.kernel.code)
                self.at = label.end()
            else:
                end = self.text.index(";", self.at)
                self.statement(" ".join(self.text[self.at : end].split()))
                self.at = end + 1

    def statement(self, text: str) -> None:
        if text.startswith(".reg"):
            self.declare(text)
        elif text.startswith((".pragma", ".shared")):  # variables are read before the body
            return
        elif text.startswith("."):
            raise PTXError(f"unknown directive: {text}")
        else:
            self.instruction(text)

    def declare(self, text: str) -> None:
        match = re.fullmatch(r"\.reg \.(\w+) (.*)", text)
        if match is None or match[1] not in _WIDTHS:
            raise PTXError(f"unknown register declaration: {text}")
        for name in map(str.strip, match[2].split(",")):
            ranged = re.fullmatch(r"(%?[\w$]+)<(\d+)>", name)
            names = [f"{ranged[1]}{i}" for i in range(int(ranged[2]))] if ranged else [name]
            for one in names:
                unique = one if len(self.scopes) == 1 else f"{one}@{self.at}"
                self.scopes[-1][one] = unique
                self.kernel.widths[unique] = _WIDTHS[match[1]]

    def instruction(self, text: str) -> None:
        match = re.fullmatch(r"(?:@(!?)(%?[\w$]+) )?([a-z][\w.:]*)(?: (.*))?", text)
        if match is None:
            raise PTXError(f"cannot read: {text}")
        guard = self.register(match[2]) if match[2] else None
        operands = tuple(self.operand(o) for o in _split(match[4] or ""))
        opcode = match[3].replace("shared::cta", "shared")  # the same memory, and the same word
        self.kernel.code.append(Instruction(opcode, operands, guard, match[1] == "!", text))

    def register(self, name: str) -> Register | None:
        for scope in reversed(self.scopes):
            if name in scope:
                return Register(scope[name])
        return None

    def operand(self, text: str) -> Operand:
        if text.startswith("{"):
            return tuple(self.operand(part) for part in _split(text[1:-1]))
        if text.startswith("["):
            base, _, offset = text[1:-1].partition("+")
            register = self.register(base.strip())
            return Address(register or base.strip(), int(offset or "0", 0))
        if re.fullmatch(r"0[fF][0-9a-fA-F]{8}|0[dD][0-9a-fA-F]{16}", text):
            return Immediate(int(text[2:], 16))
        if re.fullmatch(r"-?(0[xX][0-9a-fA-F]+|\d+)U?", text):
            return Immediate(int(text.rstrip("U"), 0))
        if re.fullmatch(r"-?\d+\.\d+(e[+-]?\d+)?", text):
            return Immediate(struct.unpack("<Q", struct.pack("<d", float(text)))[0])
        if "|" in text:
            return tuple(self.operand(part) for part in text.split("|"))
        return self.register(text) or Name(text)


def _split(text: str) -> list[str]:
    """Splits at commas outside braces and brackets."""
    parts, depth, start = [], 0, 0
    for i, sign in enumerate(text):
        depth += (sign in "{[") - (sign in "}]")
        if sign == "," and depth == 0:
            parts.append(text[start:i].strip())
            start = i + 1
    return [*parts, text[start:].strip()] if text.strip() else []
