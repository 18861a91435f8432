"""The legend below a picture of many runs."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from typing import Any

from spectramind_fused.training.labels import figure_of, no_formula
from spectramind_fused.training.panels import BAD, GREY, STOPPED, Shown


def below(figure: Any, shown: Sequence[Shown], numbered: str, far: bool) -> None:
    """Names the runs that have a colour, and by number those of the others that went wrong.

    Args:
        figure: it grows by what the legend needs. Its first axes hold the curves.
        shown: the runs.
        numbered: what their numbers are.
        far: whether arrows stand for figures that are far off.
    """
    from matplotlib.lines import Line2D

    labels: list[str] = []
    handles = []

    def add(label: str, colour: Any, line: str = "-", marker: str = "") -> None:
        labels.append(no_formula(label))
        handles.append(Line2D([], [], color=colour, ls=line, lw=1.5, marker=marker))

    for each in shown:
        if each.named:
            outcome = each.run.fate or figure_of(each.run.score)
            text = textwrap.shorten(each.name, 70, placeholder=" ...")
            marker = "x" if each.run.outcome == "diverged" else ""
            line = "--" if each.run.outcome in STOPPED else "-"
            add(f"{each.number}: {text} ({outcome})", each.colour, line, marker)
    others = [each for each in shown if not each.named]
    if others:
        add("1 other" if len(others) == 1 else f"{len(others)} others", GREY)
    top = figure.axes[0].get_ylim()[1]
    for what, line, marker, whom in (
        ("above the axis", "", "", [each for each in others if each.run.score > top]),
        ("diverged", "", "x", [each for each in others if each.run.outcome == "diverged"]),
        ("pruned", "--", "", [each for each in others if each.run.outcome == "pruned"]),
        ("did not end", "--", "", [each for each in others if each.run.outcome == "did not end"]),
    ):
        if whom:
            numbers = ", ".join(str(each.number) for each in whom)
            plural = f"{numbered}s" if len(whom) > 1 else numbered
            text = textwrap.shorten(numbers, 50, placeholder=" ...")
            add(f"{what}: {plural} {text}", GREY, line, marker)
    if any(not math.isfinite(each.run.score) for each in shown):
        add("no figure", BAD, "", "x")
    if far:
        add("far off", GREY, "", "^")
    add("calibrated", "k", "--")
    columns = int(figure.get_figwidth() * 12 / (max(map(len, labels)) + 8))
    columns = min(max(columns, 1), 4)
    lines = math.ceil(len(handles) / columns)
    figure.set_figheight(figure.get_figheight() + 0.21 * lines)
    figure.legend(handles, labels, loc="outside lower left", ncols=columns, fontsize=9)
