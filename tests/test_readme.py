"""The README: its first snippet runs as it stands, it stays short, and no page links to nothing."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
PAGES = [
    *ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("configs/**/*.md"),
    *ROOT.glob("tests/**/*.md"), *ROOT.glob("examples/*.md"),
]  # fmt: skip


def test_the_first_snippet_runs_and_prints_what_it_says(tmp_path):
    snippet = re.search(r"```python\n(.*?)```", README, re.DOTALL).group(1)
    run = subprocess.run(
        [sys.executable, "-c", snippet], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    norm, backends = run.stdout.splitlines()
    assert re.fullmatch(r"tensor\(\d+\.\d+\)", norm)
    assert backends == "{'cpu': 'cpu'}"


def test_the_readme_is_read_in_one_sitting():
    assert len(README.splitlines()) <= 150
    assert len(README) <= 10_000


def anchors(page):
    """As GitHub makes them of headings."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    prose = re.sub(r"`[^`]*`", "", page.read_text())
    for link in re.findall(r"\]\(([^)\s]+)\)", prose):
        if link.startswith("http"):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link
