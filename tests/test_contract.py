"""The tables in configs/README.md: what they promise is shown by tests that exist."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "configs/README.md").read_text()
ROWS = re.findall(r"^\| (\d+) (.*?) \| (.*) \|$", TEXT, re.M)
OTHERS = re.findall(r"^\| ()([^|\d][^|]*?) \| (`tests/[^|]*) \|$", TEXT, re.M)  # of our own groups


def test_no_section_is_left_out():
    assert {int(number) for number, _, _ in ROWS} == set(range(13))


@pytest.mark.parametrize(("number", "what", "shown"), [*ROWS, *OTHERS])
def test_the_tests_that_show_a_section_exist(number, what, shown):
    named = re.findall(r"`(tests/[^`]+)`", shown)
    assert named, f"section {number} ({what}) is shown by nothing"
    for test in named:
        path, _, name = test.partition("::")
        tree = ast.parse((ROOT / path).read_text())
        functions = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
        assert not name or name in functions, test
