"""The bar chart that the README shows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from spectramind_fused.bench.contenders import OURS, PEERS
from spectramind_fused.bench.measure import Row
from spectramind_fused.bench.programs import PROGRAMS
from spectramind_fused.bench.workloads import WORKLOADS


def draw(rows: list[Row], path: Path) -> None:
    """Draws AdamW in float32: the step alone and the whole tail, relative to ours.

    Args:
        rows: of one device and one set of versions.
        path: of the PNG.
    """
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    names = [OURS.name, *(peer.name for peer in PEERS)]
    colours = dict(zip(names, plt.get_cmap("tab10").colors, strict=False))
    figure, axes = plt.subplots(2, 1, figsize=(10, 7.5), layout="constrained")
    for axis, program in zip(axes, ("step", "amp_tail"), strict=True):
        _bars(axis, [r for r in rows if _shown(r, program)], colours)
        axis.set_title(f"AdamW, float32: {PROGRAMS[program].title}", loc="left")
        axis.set_ylabel("time per step / ours")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)
    first = rows[0]
    figure.suptitle(f"{first.device}; {first.versions}; {first.date}", fontsize=9)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _shown(row: Row, program: str) -> bool:
    return (row.optimizer, row.dtype, row.program) == ("AdamW", "float32", program)


def _bars(axis: Any, rows: list[Row], colours: dict[str, Any]) -> None:
    """A group of bars for each workload, the median over ours; milliseconds stand on the bars."""
    workloads = [w for w in WORKLOADS.values() if any(r.workload == w.name for r in rows)]
    ours = {r.workload: r.median_ms for r in rows if r.contender == OURS.name}
    names = [name for name in colours if any(r.contender == name for r in rows)]
    width = 0.85 / max(1, len(names))
    for i, name in enumerate(names):
        of = {r.workload: r for r in rows if r.contender == name}
        at = [x + (i - len(names) / 2 + 0.5) * width for x in range(len(workloads))]
        drawn = [(x, of[w.name]) for x, w in zip(at, workloads, strict=True) if w.name in of]
        heights = [row.median_ms / ours[row.workload] for _, row in drawn]
        bars = axis.bar([x for x, _ in drawn], heights, width, color=colours[name], label=name)
        labels = [f"{row.median_ms:.3g}" for _, row in drawn]
        axis.bar_label(bars, labels, fontsize=6.5, rotation=90, padding=2)
    axis.set_yscale("log")
    axis.set_xticks(range(len(workloads)), [w.name for w in workloads])
    axis.axhline(1, color="black", linewidth=0.8)
    axis.margins(y=0.2)
    axis.spines[["top", "right"]].set_visible(False)
