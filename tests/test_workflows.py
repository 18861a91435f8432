"""What runs elsewhere: workflows and pre-commit call what developers call, on what is promised."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
WORKFLOWS = ROOT / ".github" / "workflows"
CONSTRAINTS = ROOT / ".github" / "constraints"
PYPROJECT = (ROOT / "pyproject.toml").read_text()
AGES = ("oldest", "newest")
PYTHONS = re.findall(r'"Programming Language :: Python :: (3\.\d+)"', PYPROJECT)
CALLERS = [
    *sorted(WORKFLOWS.glob("*.yml")), ROOT / ".pre-commit-config.yaml", ROOT / "CONTRIBUTING.md",
    ROOT / "pyproject.toml",
]  # fmt: skip


@pytest.mark.parametrize("caller", CALLERS, ids=lambda caller: caller.name)
def test_only_targets_that_exist_are_called(caller):
    there = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    called = set(re.findall(r"(?:[`\"]| {4}|: |^)make ([a-z-]+)", caller.read_text(), re.MULTILINE))
    assert called <= there
    assert called or caller.name == "wheels.yml"


def test_the_tests_run_on_every_python_that_is_promised():
    (promised,) = re.findall(r'requires-python = ">=(.*)"', PYPROJECT)
    (matrix,) = re.findall(
        r"^ +python: \[(.*)\]$", (WORKFLOWS / "tests.yml").read_text(), re.MULTILINE
    )
    assert matrix.replace('"', "").split(", ") == PYTHONS
    assert PYTHONS[0] == promised
    (tried,) = re.findall(r"^build = \[(.*)\]$", PYPROJECT, re.MULTILINE)
    ends = [f"cp{python.replace('.', '')}-*" for python in (PYTHONS[0], PYTHONS[-1])]
    assert tried.replace('"', "").split(", ") == ends


def test_the_oldest_versions_are_those_that_are_admitted():
    admitted = dict(re.findall(r'"(torch|triton)>=([\d.]+)', PYPROJECT))
    oldest = dict(
        re.findall(r"^(\w+)==([\d.]+)\.0$", (CONSTRAINTS / "oldest.txt").read_text(), re.MULTILINE)
    )
    assert oldest == admitted
    workflow = (WORKFLOWS / "tests.yml").read_text()
    named = set(re.findall(r"constraints: \[?([\w./]+\.txt)", workflow))
    assert named == {"constraints.txt", *(f".github/constraints/{age}.txt" for age in AGES)}
    assert all((ROOT / name).is_file() for name in named)
