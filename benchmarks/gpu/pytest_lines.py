"""A plugin of pytest's: a share of the tests, and a line of JSON as each begins and ends.

pytest -p benchmarks.gpu.pytest_lines --lines FILE --share 0/4
"""

from __future__ import annotations

import json
import re
import zlib
from pathlib import Path
from typing import Any

import pytest

_MESSAGE = 1500  # characters of what a failed test says


def pytest_addoption(parser: pytest.Parser) -> None:
    """The plugin's two options."""
    parser.addoption("--lines", type=Path, required=True, help="where the lines go")
    parser.addoption("--share", default="0/1", metavar="I/N", help="every N-th test, from the I-th")


def pytest_configure(config: pytest.Config) -> None:
    """Registers what writes."""
    config.pluginmanager.register(_Lines(config.getoption("--lines")))


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves the tests of this share, the same whoever collects them."""
    share, shares = map(int, config.getoption("--share").split("/"))
    items[:] = [i for i in items if zlib.crc32(i.nodeid.encode()) % shares == share]


class _Lines:
    def __init__(self, path: Path) -> None:
        self._path = path

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self._write(test=nodeid, outcome="begun")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" or report.outcome != "passed":
            self._write(
                test=report.nodeid, outcome=report.outcome, seconds=report.duration,
                said=_said(report),
            )  # fmt: skip

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.outcome != "passed":
            self._write(test=report.nodeid, outcome=report.outcome, seconds=0.0, said=_said(report))

    def _write(self, **line: Any) -> None:
        with self._path.open("a") as file:
            file.write(json.dumps(line) + "\n")


def _said(report: Any) -> str:
    if report.outcome == "skipped" and isinstance(report.longrepr, tuple):
        return str(report.longrepr[2]).removeprefix("Skipped: ")
    text = "" if report.outcome == "passed" else str(report.longrepr)
    return re.sub(r"\x1b\[[0-9;]*m", "", text)[-_MESSAGE:]
