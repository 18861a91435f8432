"""Every snippet of the pages runs as it stands, and what is shown only says who runs it."""

import contextlib
import io
import re
from pathlib import Path

import pytest

from tests.command_line import shell
from tests.test_cli import LINES as RUN_THERE
from tests.test_cli import SMALL

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    page
    for page in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("configs/**/*.md")]
    if "```" in page.read_text()
)
BLOCK = re.compile(r"(?:<!-- test: shown only; (\S+) .*-->\n)?```(\w+)\n(.*?)```", re.DOTALL)


def blocks(page, language):
    """For each block: who else runs it, empty where nobody does; its text; what it is to print."""
    text = page.read_text()
    found = list(BLOCK.finditer(text))
    ends = [each.start() for each in found[1:]] + [len(text)]
    for each, end in zip(found, ends, strict=False):  # one end too many where nothing is found
        who, said, content = each.groups()
        if said == language:
            yield who, content, re.findall(r"This prints `(.*?)`", text[each.end() : end])


WITH_PYTHON = [page for page in PAGES if any(blocks(page, "python"))]
# What stands for a user's own, and what tests/training runs: searches, joblib, compare.
ELSEWHERE = r"PATH|DIR\b|RUN\b|my[_.]|search|launcher|compare"
LINES = dict.fromkeys(
    line.partition(" #")[0].strip()
    for page in PAGES
    for _, text, _ in blocks(page, "bash")
    for line in text.splitlines()
    if line.startswith("spectramind ") and not re.search(ELSEWHERE, line)
)
RUN_ELSEWHERE = {
    *RUN_THERE.values(),
    "spectramind train experiment=optimizer_sweeps/adamw",  # tests/test_commands.py
    "spectramind train training.devices=2",  # tests/training/test_processes.py
}


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # torch.compile, of torch's classes too
@pytest.mark.parametrize("page", WITH_PYTHON, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_snippets_of_a_page_run_one_after_the_other(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "a_page"}
    for who, text, promised in blocks(page, "python"):
        if who:
            assert (ROOT / who).is_file(), f"{who} is to run a snippet of {page.name}"
            continue
        said = io.StringIO()
        with contextlib.redirect_stdout(said):
            exec(compile(text, str(page), "exec"), names)
        for words in promised:
            assert words in said.getvalue()


@pytest.mark.parametrize("line", [line for line in LINES if line not in RUN_ELSEWHERE])
def test_the_commands_of_the_pages_run(line, tmp_path):
    words = SMALL if re.match(r"spectramind (-m )?train", line) else ""
    run = shell(line, tmp_path, SPECTRAMIND_TEST_WORDS=words)
    assert run.returncode == 0, run.stderr


def test_something_was_found():
    assert len(WITH_PYTHON) > 8
    assert len(LINES) > 5
