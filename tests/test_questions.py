"""Ten questions of a stranger, answered within two clicks of the README."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# The question; the page that answers it; a sentence of that page.
ANSWERS = {
    "Is it faster for my model?": (
        "docs/performance.md",
        "answers for your own model what you would gain",
    ),
    "What changes in my results when I switch?": (
        "docs/switching.md",
        "In float32 a step differs from torch's by a few units in the last place",
    ),
    "Can I go back?": ("docs/switching.md", "You can go back at any checkpoint."),
    "Does it work with my Trainer?": (
        "docs/trainers.md",
        "Everything here ends with the weights that torch's class gives",
    ),
    "With FSDP2?": ("docs/distributed.md", "The kernels step each rank's part"),
    "How do I train in bf16 without losing updates?": (
        "docs/low-precision.md",
        '`master_weights="split"` steps exactly as float32 weights would',
    ),
    "How much memory do I save?": ("docs/low-precision.md", "Held: counted from the tensors"),
    "Which optimizer and lr do I start with?": ("docs/choosing.md", "**Begin with AdamW**"),
    "How do I sweep on a cluster?": ("docs/search.md", "hydra/launcher=submitit_slurm"),
    "Why is my backend eager?": (
        "docs/troubleshooting.md",
        "`spectramind doctor` says for each backend whether it runs here",
    ),
}
LINK = re.compile(r"\]\(([^)#\s]+)")


def words(path):
    """The text of a page, in one line."""
    return " ".join(path.read_text().split())


@pytest.mark.parametrize("question", ANSWERS)
def test_a_question_is_answered_within_two_clicks(question):
    page, sentence = ANSWERS[question]
    assert "docs/questions.md" in LINK.findall((ROOT / "README.md").read_text())  # one
    asked = (ROOT / "docs" / "questions.md").read_text()
    answer = re.search(rf"## {re.escape(question)}\n(.*?)(?=\n## |\Z)", asked, re.DOTALL)
    assert answer, f"{question} is not asked"
    links = {(ROOT / "docs" / link).resolve() for link in LINK.findall(answer.group(1))}
    assert ROOT / page in links  # two
    assert sentence in words(ROOT / page)


def test_nothing_else_is_asked():
    asked = re.findall(r"^## (.*)$", (ROOT / "docs" / "questions.md").read_text(), re.MULTILINE)
    assert asked == list(ANSWERS)
