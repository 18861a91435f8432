"""Small faults, planted one at a time in the sources: which of them do the tests notice?

    python tests/mutants.py list --count 320 --seed 0 > mutants.json
    python tests/mutants.py run mutants.json --tree COPY --out caught.json -- -x tests/optim

`COPY` is a copy of the project whose files are changed and put back; its kernels are compiled
into it. Each mutant is run in a process that is forked from one that has imported torch. What is
written of each: the test that failed first, "compiler" or "time", or null where none did.
"""

from __future__ import annotations

import argparse
import ast
import copy
import importlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
TARGETS = [
    "csrc/*.h", "csrc/cpu/*", "csrc/host/*", "spectramind_fused/multi_tensor/*.py",
    "spectramind_fused/stepping/*.py",
    *(f"spectramind_fused/optim/{name}.py" for name in ("base", "checkpoint", "ema", "scaler")),
]  # fmt: skip
FLAGS = ["-std=c++17", "-O1", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=off"]
IMPORTED = ["torch", "torch._dynamo", "torch.testing", "numpy", "pytest", "hypothesis", "triton"]
SECONDS = 400


# Python

_COMPARISONS = {
    ast.Eq: ast.NotEq, ast.NotEq: ast.Eq, ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE,
    ast.GtE: ast.Gt, ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
}  # fmt: skip
_ARITHMETIC = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Add, ast.Div: ast.Mult,
    ast.FloorDiv: ast.Div, ast.Mod: ast.FloorDiv, ast.BitOr: ast.BitAnd, ast.BitAnd: ast.BitOr,
}  # fmt: skip


def _changes(node: ast.AST) -> Iterator[ast.AST]:
    """What a node may become."""
    if isinstance(node, ast.Compare) and type(node.ops[0]) in _COMPARISONS:
        changed = copy.deepcopy(node)
        changed.ops[0] = _COMPARISONS[type(node.ops[0])]()
        yield changed
    elif isinstance(node, ast.BinOp) and type(node.op) in _ARITHMETIC:
        changed = copy.deepcopy(node)
        changed.op = _ARITHMETIC[type(node.op)]()
        yield changed
    elif isinstance(node, ast.BoolOp):
        changed = copy.deepcopy(node)
        changed.op = ast.And() if isinstance(node.op, ast.Or) else ast.Or()
        yield changed
        yield node.values[0]
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        yield node.operand
    elif isinstance(node, ast.Constant) and isinstance(node.value, bool):
        yield ast.Constant(not node.value)
    elif isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        yield ast.Constant(node.value + 1)
    elif isinstance(node, ast.If | ast.IfExp):
        changed = copy.deepcopy(node)
        changed.test = ast.UnaryOp(ast.Not(), node.test)
        yield changed
    elif isinstance(node, ast.Return) and node.value is not None:
        yield ast.Return(ast.Constant(None))
    elif (isinstance(node, ast.Expr) and not isinstance(node.value, ast.Constant)) or isinstance(
        node, ast.AugAssign
    ):
        yield ast.Pass()
    elif isinstance(node, ast.Continue):
        yield ast.Break()


class _Replace(ast.NodeTransformer):
    def __init__(self, old: ast.AST, new: ast.AST) -> None:
        self.old, self.new = old, new

    def visit(self, node: ast.AST) -> ast.AST:
        return self.new if node is self.old else self.generic_visit(node)


def python_mutants(path: Path) -> Iterator[tuple[int, str, str, str]]:
    """Line, what stood there, what stands there now, and the whole changed text."""
    text = path.read_text()
    tree = ast.parse(text)
    typing = {
        inner
        for node in ast.walk(tree)
        for part in (
            [node.annotation] if isinstance(node, ast.AnnAssign | ast.arg) else
            [node.returns] if isinstance(node, ast.FunctionDef) else
            [node] if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test) else
            []
        )
        if part is not None
        for inner in ast.walk(part)
    }  # fmt: skip
    for node in ast.walk(tree):
        if node in typing:
            continue
        for changed in _changes(node):
            new = ast.fix_missing_locations(_Replace(node, changed).visit(tree))
            whole = ast.unparse(new)
            yield node.lineno, ast.unparse(node), ast.unparse(changed), whole
            _Replace(changed, node).visit(tree)


# C++

_SIGNS = [
    (r"(?<![<>=!+\-*/%&|])==", "!="), (r"!=", "=="), (r"<=", "<"), (r">=", ">"),
    (r"(?<= )<(?= )", "<="), (r"(?<= )>(?= )", ">="), (r"&&", "||"), (r"\|\|", "&&"),
    (r"(?<= )\+(?= )", "-"), (r"(?<= )-(?= )", "+"), (r"(?<= )\*(?= )", "+"),
    (r"(?<= )/(?= )", "*"), (r"\btrue\b", "false"), (r"\bfalse\b", "true"),
    (r"\+=", "-="), (r"!(?=[a-z(])", ""), (r"(?<![\w.])(\d+)(?![\w.])", None),
]  # fmt: skip


def cpp_mutants(path: Path) -> Iterator[tuple[int, str, str, str]]:
    """As python_mutants: a sign, a number, or a statement left out."""
    lines = path.read_text().splitlines(keepends=True)
    for i, line in enumerate(lines):
        code = line.split("//")[0]
        if re.match(r"\s*(#|\*|/\*|static_assert|template|using|namespace)", code):
            continue
        found = []
        for pattern, new in _SIGNS:
            for match in re.finditer(pattern, code):
                put = str(int(match[1]) + 1) if new is None else new
                found.append(code[: match.start()] + put + code[match.end() :])
        if re.fullmatch(r"\s+[a-z][\w.\[\]>-]* [-+*]?= [^;]*;\s*|\s+[a-z]\w*\([^;]*\);\s*", code):
            found.append("\n")
        for new in found:
            new = new.rstrip() + "\n"
            whole = "".join([*lines[:i], new, *lines[i + 1 :]])
            yield i + 1, line.strip(), new.strip(), whole


def all_mutants() -> Iterator[dict[str, object]]:
    """Every fault that could be planted."""
    for pattern in TARGETS:
        for path in sorted(ROOT.glob(pattern)):
            make = python_mutants if path.suffix == ".py" else cpp_mutants
            for line, before, after, text in make(path):
                name = str(path.relative_to(ROOT))
                yield {"file": name, "line": line, "before": before[:300], "after": after[:300],
                       "text": text}  # fmt: skip


# Running


def planted(mutant: dict[str, str], tree: Path) -> str | None:
    """Writes a mutant into the tree; says if it does not compile."""
    (tree / mutant["file"]).write_text(mutant["text"])
    return compiled(tree) if mutant["file"].startswith("csrc/") else None


def compiled(tree: Path) -> str | None:
    """Compiles the C++ kernels of the tree."""
    library = tree / "spectramind_fused/kernels/_cpu.so"
    sources = ["csrc/cpu/step.cpp", "csrc/host/facts.cpp"]
    command = ["c++", *FLAGS, "-shared", "-fPIC", *sources, "-o", str(library)]
    library.unlink(missing_ok=True)
    run = subprocess.run(command, cwd=tree, capture_output=True, check=False)
    return "compiler" if run.returncode else None


class _First:
    """Notes the first failure."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def pytest_runtest_logreport(self, report: object) -> None:
        if report.failed and not self.path.exists():  # type: ignore[attr-defined]
            self.path.write_text(report.nodeid)  # type: ignore[attr-defined]

    def pytest_collectreport(self, report: object) -> None:
        self.pytest_runtest_logreport(report)


def noticed(tree: Path, arguments: list[str]) -> str | None:
    """The first test that fails, in a process of its own."""
    first = tree / "first-failure"
    first.unlink(missing_ok=True)
    child = os.fork()
    if child == 0:
        os.setsid()
        log = os.open(tree / "last-run.log", os.O_CREAT | os.O_TRUNC | os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(log, stream)
        os.chdir(tree)
        sys.path[0] = str(tree)
        code = 3
        try:
            import hypothesis
            import pytest

            without = {hypothesis.Phase.shrink, hypothesis.Phase.explain}  # a failure is enough
            hypothesis.settings.register_profile("first", phases=set(hypothesis.Phase) - without)
            hypothesis.settings.load_profile("first")
            early = ["-W", "ignore::pytest.PytestAssertRewriteWarning"]  # of hypothesis
            words = [*arguments, *early, "-p", "no:cacheprovider"]
            code = int(pytest.main(words, [_First(first)]))
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)
    end = time.monotonic() + SECONDS
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            code = os.waitstatus_to_exitcode(status)
            break
        if time.monotonic() > end:
            os.killpg(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return "time"
        time.sleep(0.05)
    if code == 0:
        return None
    return first.read_text() if first.exists() else f"exit {code}"


def run(given: argparse.Namespace) -> None:
    """Plants one after the other; what is known already is not run again."""
    tree = given.tree.resolve()
    done = json.loads(given.out.read_text()) if given.out.exists() else {}
    for name in IMPORTED:
        importlib.import_module(name)
    compiled(tree)
    library = tree / "spectramind_fused/kernels/_cpu.so"
    whole = library.read_bytes()
    assert (clean := noticed(tree, given.arguments)) is None, f"fails without a mutant: {clean}"
    for number, mutant in enumerate(json.loads(given.mutants.read_text())):
        if number % given.of != given.part or str(number) in done:
            continue
        if given.only is not None and str(number) not in json.loads(given.only.read_text()):
            continue
        path = tree / mutant["file"]
        original = path.read_text()
        start = time.monotonic()
        try:
            done[str(number)] = planted(mutant, tree) or noticed(tree, given.arguments)
        finally:
            path.write_text(original)
            library.unlink(missing_ok=True)  # a new file: the old one may be mapped
            library.write_bytes(whole)
        given.out.write_text(json.dumps(done, indent=1))
        print(f"{number} {mutant['file']}:{mutant['line']} {mutant['before'][:40]!r} -> "
              f"{mutant['after'][:40]!r}: {done[str(number)]} ({time.monotonic() - start:.0f} s)",
              flush=True)  # fmt: skip


def main() -> None:
    """`list` or `run`."""
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    listing = commands.add_parser("list")
    listing.add_argument("--count", type=int, default=320)
    listing.add_argument("--seed", type=int, default=0)
    running = commands.add_parser("run")
    running.add_argument("mutants", type=Path)
    running.add_argument("--tree", type=Path, required=True)
    running.add_argument("--out", type=Path, required=True)
    running.add_argument("--part", type=int, default=0, help="this one of ...")
    running.add_argument("--of", type=int, default=1, help="... as many runs side by side")
    running.add_argument("--only", type=Path, help="JSON: a list of numbers")
    words = sys.argv[1:]
    cut = words.index("--") if "--" in words else len(words)
    given = parser.parse_args(words[:cut])
    given.arguments = words[cut + 1 :]  # for pytest
    if given.command == "list":
        every = list(all_mutants())
        chosen = random.Random(given.seed).sample(every, given.count)
        json.dump(chosen, sys.stdout)
        print(f"{given.count} of {len(every)}", file=sys.stderr)
    else:
        run(given)


if __name__ == "__main__":
    main()
