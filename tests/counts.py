"""How many tests each file holds, and how much the emulator ran: a suite that shrinks is noticed.

Each invocation of the Makefile has an entry in counts.json: the tests selected per file, and the
instructions that emulated blocks ran. One that selects fewer tests, or runs fewer than nine tenths
of the instructions, fails. `--write-counts` writes the entry anew. A part of the suite is not
compared, nor are other versions of torch or Triton than the file was written with.
"""

import json
from collections import Counter
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest

FILE = Path(__file__).with_name("counts.json")
LEAST = 0.9  # of the instructions: how far loops go depends a little on addresses


def versions():
    """What decides which tests there are."""
    found = {}
    for package in ("torch", "triton"):
        try:
            found[package] = ".".join(version(package).split(".")[:2])
        except PackageNotFoundError:
            found[package] = "none"
    return found


def shrunk(seen, recorded):
    """What is less than it was, a line each."""
    lines = [
        f"{name} has {seen['tests'].get(name, 0)} tests and had {count}"
        for name, count in recorded["tests"].items()
        if seen["tests"].get(name, 0) < count
    ]
    if seen["instructions"] < LEAST * recorded["instructions"]:
        lines.append(
            f"the emulator ran {seen['instructions']:,} instructions and "
            f"{recorded['instructions']:,} before"
        )
    return lines


class Counts:
    """The plugin, in the process that the user started and in xdist's workers."""

    def __init__(self, config):
        self.config = config
        self.tests, self.instructions = Counter(), 0

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items):
        self.tests = Counter(str(item.path.relative_to(item.config.rootpath)) for item in items)

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node):
        output = getattr(node, "workeroutput", {})
        self.instructions += output.get("instructions", 0)
        self.tests = Counter(output.get("tests", {})) or self.tests

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session, exitstatus):
        if self.config.emulated:
            self.instructions += self.config.emulated.instructions
        if hasattr(self.config, "workeroutput"):
            self.config.workeroutput.update(instructions=self.instructions, tests=dict(self.tests))
            return
        self.lines = []
        if exitstatus == 0 and self.whole():
            self.lines = self.compare()
            if self.lines:
                session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def whole(self):
        """Whether this is an invocation as the Makefile has it."""
        option = self.config.option
        picked = option.keyword or option.deselect or option.ignore or option.maxfail
        everything = self.config.args == self.config.getini("testpaths")
        served = option.interpret or not self.config.unserved
        return everything and served and not picked

    def compare(self):
        option = self.config.option
        where = "interpreted" if option.interpret else f"emulated {option.emulate}"
        name = f"{where}: {option.markexpr}"
        record = json.loads(FILE.read_text()) if FILE.exists() else {"invocations": {}}
        seen = {
            "total": sum(self.tests.values()),
            "instructions": self.instructions,
            "tests": dict(sorted(self.tests.items())),
        }
        if option.write_counts:
            record["versions"] = versions()
            record["invocations"][name] = seen
            FILE.write_text(json.dumps(record, indent=1) + "\n")
        elif record.get("versions") == versions() and name in record["invocations"]:
            return shrunk(seen, record["invocations"][name])
        return []

    def pytest_terminal_summary(self, terminalreporter):
        if self.instructions:
            terminalreporter.write_line(f"{self.instructions:,} instructions of emulated blocks")
        for line in getattr(self, "lines", []):
            terminalreporter.write_line(f"The suite has shrunk: {line}.", red=True)
