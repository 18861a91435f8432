"""What runs are called, and how figures are written, where there is little room."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from spectramind_fused.training.past_runs import PastRun, varied


def names(runs: Sequence[PastRun]) -> list[str]:
    """What tells runs apart, in few words: the values that vary, or else their folders."""
    keys = varied(runs)
    called = short(keys)
    found = [
        ", ".join(_said(key, called[key], run.value(key)) for key in keys if run.value(key))
        for run in runs
    ]
    twice = Counter(found)
    return [
        name if name and twice[name] == 1 else f"{name} in {run.folder.name}".removeprefix(" in ")
        for name, run in zip(found, runs, strict=True)
    ]


def _said(key: str, called: str, value: str) -> str:
    """A value and its key; the choice of a group, such as optimizer=lion, needs none."""
    return value if "." not in key and value != "null" else f"{called} {brief(value)}"


def short(keys: Sequence[str]) -> dict[str, str]:
    """The last word of each dotted key, the whole key where two would share it."""
    ends = Counter(key.rpartition(".")[2] for key in keys)
    return {key: end if ends[end := key.rpartition(".")[2]] == 1 else key for key in keys}


def figure_of(score: float) -> str:
    """A score in few digits, also one that is far off."""
    return f"{score:.3f}" if abs(score) < 1000 else f"{score:.1e}"


def brief(value: str) -> str:
    """A number with many digits in few; anything else as it is."""
    try:
        return f"{float(value):.3g}" if len(value) > 7 else value
    except ValueError:
        return value


def no_formula(text: str) -> str:
    """A text that matplotlib does not read as mathematics."""
    return text.replace("$", r"\$")
