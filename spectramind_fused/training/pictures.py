"""The pictures of many runs: of a sweep, and of runs that are compared."""

from __future__ import annotations

import io
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from spectramind_fused.training import legend, panels
from spectramind_fused.training.labels import names, short
from spectramind_fused.training.panels import GREY, Shown
from spectramind_fused.training.past_runs import PastRun, rank, varied

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_GREY_ONE = 7  # of the ten colours of tab10: too near to that of the runs without a name
_SHARES = (("within 1 sigma", 0.683, "o"), ("within 2 sigma", 0.954, "s"))
_RMS = "rms of error / sigma"


def available() -> bool:
    """Whether pictures can be drawn: matplotlib comes with the extra `train`."""
    logging.getLogger("matplotlib").setLevel(logging.WARNING)
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError:
        return False
    return True


def leaderboard(runs: Sequence[PastRun]) -> Figure:
    """A sweep: curves, calibration, and a map where two values were varied on a grid.

    Args:
        runs: the best first.
    """
    keys = varied(runs)
    shown = _shown(runs, names(runs), first=None)
    mapped = len(keys) == 2 and _fill_a_map(runs, keys)
    figure, parts = _figure(15 if mapped else 13, [1.5, 1, 1.3][: 3 if mapped else 2], 2)
    panels.curves(parts[0], shown)
    parts[0].set_title("validation, by epoch", fontsize=10, loc="left")
    far = _calibration(parts[1:3], shown)
    parts[2].set_xlabel("rank")
    if mapped:
        axes = figure.add_subplot(parts[0].get_gridspec()[:, 2])
        panels.heat_map(axes, runs, keys, list(short(keys).values()))
    legend.below(figure, shown, "rank", far)
    return figure


def comparison(runs: Sequence[PastRun]) -> Figure:
    """Runs beside the first of them: curves, differences, calibration, time per step.

    Args:
        runs: in the order in which they were given.
    """
    shown = _shown(runs, names(runs), first=runs[0])
    figure, parts = _figure(13, [1.3, 1], 4)
    panels.curves(parts[0], shown)
    parts[0].set_title("validation, by epoch", fontsize=10, loc="left")
    differences = [run.score - runs[0].score for run in runs]
    far = panels.points(parts[1], shown, differences, "val/gll minus that of run 1", 0.0)
    far |= _calibration(parts[2:4], shown)
    times = [run.ms_per_step for run in runs]
    far |= panels.points(parts[4], shown, times, "ms per training step")
    parts[4].set_ylim(0, 1.1 * parts[4].get_ylim()[1])
    parts[4].set_xlabel("run")
    legend.below(figure, shown, "run", far)
    return figure


def _fill_a_map(runs: Sequence[PastRun], keys: Sequence[str]) -> bool:
    """Whether two values were varied on a grid, not drawn at random."""
    rows, columns = ({run.value(key) for run in runs} for key in keys)
    return len(panels.cells_of(runs, keys)) > len(rows) * len(columns) / 2


def _shown(runs: Sequence[PastRun], called: Sequence[str], first: PastRun | None) -> list[Shown]:
    """Colours for the best runs, black for the one that others are compared with."""
    from matplotlib import colormaps

    palette = [colormaps["tab10"](i) for i in range(10) if i != _GREY_ONE]
    colours: dict[int, Any] = {} if first is None else {id(first): "k"}
    best = [run for run in sorted(runs, key=rank) if run is not first]
    colours |= {id(run): colour for run, colour in zip(best, palette, strict=False)}
    return [
        Shown(run, i, name, colours.get(id(run), GREY))
        for i, (run, name) in enumerate(zip(runs, called, strict=True), start=1)
    ]


def _figure(width: float, widths: Sequence[float], rows: int) -> tuple[Figure, list[Any]]:
    """A figure with one large part at the left, and a column of parts beside it."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, max(4.8, 1.65 * rows)), layout="constrained")
    grid = figure.add_gridspec(rows, len(widths), width_ratios=widths)
    parts = [figure.add_subplot(grid[:, 0])]
    for row in range(rows):
        parts.append(figure.add_subplot(grid[row, 1]))
        if row < rows - 1:
            parts[-1].tick_params(labelbottom=False)
    return figure, parts


def _calibration(parts: Sequence[Any], shown: Sequence[Shown]) -> bool:
    """Returns whether a figure was far off."""
    title = "% within 1 sigma (dots), 2 sigma (squares)"
    values = [each.run.calibration(_RMS) for each in shown]
    far = panels.points(parts[1], shown, values, _RMS, 1.0)
    for name, ideal, marker in _SHARES:
        shares = [100 * each.run.calibration(name) for each in shown]
        far |= panels.points(parts[0], shown, shares, title, 100 * ideal, marker)
    return far


def png(figure: Figure) -> bytes:
    """A figure as the content of a file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    return buffer.getvalue()
