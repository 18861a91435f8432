"""A suite that becomes less is noticed: what counts.py compares, and what it compares with."""

import json

import pytest

from tests.counts import FILE, shrunk

RECORDED = {"tests": {"tests/a.py": 3, "tests/b.py": 2}, "instructions": 1000}


def test_as_many_or_more_is_well():
    assert shrunk(RECORDED, RECORDED) == []
    more = {"tests": {"tests/a.py": 4, "tests/b.py": 2, "tests/c.py": 1}, "instructions": 950}
    assert shrunk(more, RECORDED) == []


def test_what_is_less_is_named():
    fewer = {"tests": {"tests/a.py": 2}, "instructions": 10}
    assert shrunk(fewer, RECORDED) == [
        "tests/a.py has 2 tests and had 3",
        "tests/b.py has 0 tests and had 2",
        "the emulator ran 10 instructions and 1,000 before",
    ]


def test_every_invocation_of_the_makefile_is_recorded(pytestconfig):
    if pytestconfig.getoption("write_counts"):
        pytest.skip("the record is being written")
    makefile = (FILE.parents[1] / "Makefile").read_text()
    lines = makefile.split("soak: setup")[0].splitlines()
    asked = [line.split("$(PYTEST)")[1] for line in lines if line.startswith("\t$(PYTEST)")]
    recorded = json.loads(FILE.read_text())["invocations"]
    assert len(asked) == len(recorded) == 5
    for name in recorded:
        where, marks = name.split(": ")
        option = {"interpreted": "--interpret", "emulated 90": ""}.get(
            where, f"--{where.replace('emulated', 'emulate')}"
        )
        assert any(marks in line and option in line for line in asked), name
