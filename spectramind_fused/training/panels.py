"""The parts of a picture of many runs: curves, figures run by run, a map of two values."""

from __future__ import annotations

import math
import statistics
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from spectramind_fused.training.labels import brief, figure_of, no_formula
from spectramind_fused.training.past_runs import PastRun, rank

GREY = "0.75"
BAD = "tab:red"
STOPPED = ("pruned", "did not end")
_LEAST_SPAN = 0.02  # of an axis: less is rounding


@dataclass(frozen=True)
class Shown:
    """A run as a picture shows it.

    Attributes:
        run: the run.
        number: what it is called on axes and in the legend.
        name: what the legend says of it.
        colour: of its curve and points; `GREY` for one that is not named.
    """

    run: PastRun
    number: int
    name: str
    colour: Any

    @property
    def named(self) -> bool:
        """Whether the legend has a line for it."""
        return bool(self.colour != GREY)


def curves(axes: Any, shown: Sequence[Shown]) -> None:
    """Draws val/gll by epoch.

    A curve that turns into nan ends in a cross, one that stops early is dashed. The axis is
    cut so that neither first epochs nor runs that end far off squeeze the others.
    """
    low, high = _limits_of_curves([each.run for each in shown])
    longest = max((len(each.run.history) for each in shown), default=0)
    for each in sorted(shown, key=lambda each: (each.named, -each.number)):  # the best on top
        finite = [(e, s) for e, s in each.run.history.items() if math.isfinite(s)]
        if not finite:
            continue
        axes.plot(
            *zip(*finite, strict=True),
            color=each.colour,
            lw=1.5 if each.named else 0.8,
            ls="--" if each.run.outcome in STOPPED else "-",
            marker="o" if longest <= 10 else None,
            ms=3,
        )
        if each.run.outcome == "diverged":
            epoch, score = finite[-1]
            top = high - 0.03 * (high - low)
            axes.plot(epoch, min(score, top), "x", color=each.colour, ms=8, mew=2)
    axes.set_ylim(low, high)
    axes.set_xlabel("epoch")
    axes.set_ylabel("val/gll per bin, lower is better")
    axes.margins(x=0.02)
    axes.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
    if not any(math.isfinite(s) for each in shown for s in each.run.history.values()):
        _say(axes, "no run has a finite val/gll")
    axes.grid(alpha=0.3)


def points(
    axes: Any,
    shown: Sequence[Shown],
    values: Sequence[float],
    title: str,
    ideal: float | None = None,
    marker: str = "o",
) -> bool:
    """Draws a figure of every run over its number; a red cross stands below a run that has none.

    Args:
        axes: may hold the points of another figure already.
        shown: the runs.
        values: of each, nan where it has none.
        title: what the figure is.
        ideal: where a dashed line is drawn.
        marker: of the points.

    Returns:
        Whether one was so far off that an arrow at the edge stands for it.
    """
    finite = [value for value in values if math.isfinite(value)]
    low, high = _fences(finite)
    for each, value in zip(shown, values, strict=True):
        if not math.isfinite(value):
            where = axes.get_xaxis_transform()  # along y: 0 is the lower edge
            axes.plot(each.number, 0.06, "x", color=BAD, ms=5, transform=where)
        else:
            kept = min(max(value, low), high)
            sign = marker if kept == value else ("^" if value > kept else "v")
            axes.plot(each.number, kept, sign, color=each.colour, ms=5)
    if ideal is not None:
        axes.axhline(ideal, color="k", ls="--", lw=0.8, zorder=0)
    axes.set_title(title, fontsize=10, loc="left")
    axes.set_xlim(0.4, len(shown) + 0.6)
    axes.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
    axes.margins(y=0.15)
    bottom, top = axes.get_ylim()
    if top - bottom < _LEAST_SPAN:
        middle = (top + bottom) / 2
        axes.set_ylim(middle - _LEAST_SPAN / 2, middle + _LEAST_SPAN / 2)
    axes.grid(alpha=0.3)
    return any(not low <= value <= high for value in finite)


def heat_map(axes: Any, runs: Sequence[PastRun], keys: Sequence[str], names: Sequence[str]) -> None:
    """Draws val/gll over two values that were varied; what has no score says why.

    Args:
        axes: where.
        runs: of equals the best one counts.
        keys: down and across.
        names: what the two are called.
    """
    from matplotlib.colors import PowerNorm

    down, across = (_in_order({run.value(key) for run in runs}) for key in keys)
    cells = cells_of(runs, keys)
    finite = [run.score for run in cells.values() if not run.outcome]
    _, top = _limits_of_curves(runs)
    inside = [score for score in finite if score <= top] or [0.0]
    norm = PowerNorm(0.5, min(inside), max(inside))  # the best are told apart more finely
    scores = [
        [cells[row, column].score if (row, column) in cells else math.nan for column in across]
        for row in down
    ]
    image = axes.imshow(scores, cmap="viridis", norm=norm, aspect="auto")
    most = max(len(down), len(across))
    for (row, column), run in cells.items():
        if run.outcome or most <= 16:
            dark = not run.outcome and norm(run.score) < 0.5
            axes.text(
                across.index(column),
                down.index(row),
                run.outcome or figure_of(run.score),
                ha="center",
                va="center",
                color="w" if dark else "k",
                fontsize=9 if most <= 6 else 7,
            )
    crowded = len(across) > 6 and max(map(len, across)) > 4
    words = [_wrapped(value, 40 if crowded else 12) for value in across]
    axes.set_xticks(range(len(across)), words, rotation=90 if crowded else 0)
    axes.set_yticks(range(len(down)), [_wrapped(value, 12) for value in down])
    axes.set_ylabel(names[0])
    axes.set_xlabel(names[1])
    axes.set_title("val/gll", fontsize=10, loc="left")
    if finite:
        beyond = max(finite) > top
        axes.figure.colorbar(image, ax=axes, extend="max" if beyond else "neither", pad=0.02)


def cells_of(runs: Sequence[PastRun], keys: Sequence[str]) -> dict[tuple[str, str], PastRun]:
    """The best run of each pair of values."""
    down, across = keys
    worst_first = sorted(runs, key=rank, reverse=True)
    return {(run.value(down), run.value(across)): run for run in worst_first}


def _limits_of_curves(runs: Sequence[PastRun]) -> tuple[float, float]:
    """What all runs go through that do not end far off, less their first epochs and spikes.

    Far off is what ends more than once above all that the better half goes through.
    """
    finite = [run for run in runs if any(map(math.isfinite, run.history.values()))]
    ended = [run for run in finite if not run.outcome] or finite
    histories = [[s for s in run.history.values() if math.isfinite(s)] for run in ended]
    if not histories:
        return 0.0, 1.0
    histories.sort(key=lambda history: history[-1])
    low, high = _most(histories[: (len(histories) + 1) // 2])
    inside = [history for history in histories if history[-1] <= high + (high - low)]
    low, high = _most(inside)
    high = max(high, inside[-1][-1])
    margin = 0.04 * (high - low) or 0.1
    return low - margin, high + margin


def _most(histories: Sequence[list[float]]) -> tuple[float, float]:
    """The least of many values, and what hardly any of them is above."""
    values = sorted(score for history in histories for score in history)
    return values[0], values[math.ceil(0.95 * (len(values) - 1))]


def _fences(values: Sequence[float]) -> tuple[float, float]:
    """Where what is far off is drawn: three spreads of the middle half beyond it."""
    if len(values) < 4:
        return min(values, default=0.0), max(values, default=1.0)
    first, _, third = statistics.quantiles(values, method="inclusive")
    reach = 3 * (third - first)
    inside = [value for value in values if first - reach <= value <= third + reach]
    return min(inside), max(inside)


def _wrapped(value: str, width: int) -> str:
    return no_formula(textwrap.fill(brief(value), width))


def _in_order(values: set[str]) -> list[str]:
    """Numbers by size, and words behind them."""

    def key(value: str) -> tuple[bool, float, str]:
        try:
            return False, float(value), value
        except ValueError:
            return True, 0.0, value

    return sorted(values, key=key)


def _say(axes: Any, text: str) -> None:
    axes.text(0.5, 0.5, text, ha="center", va="center", transform=axes.transAxes)
