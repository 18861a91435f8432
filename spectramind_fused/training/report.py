"""What a run prints and draws."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from torch import Tensor

from spectramind_fused.config.records import export_json
from spectramind_fused.files import whole
from spectramind_fused.training.data import Spectra
from spectramind_fused.training.history import Epoch
from spectramind_fused.training.model import interpolation
from spectramind_fused.training.settings import RunConfig

if TYPE_CHECKING:
    from lightning_fabric import Fabric


def start(
    run: RunConfig,
    record: dict[str, Any],
    spectra: Spectra,
    total_steps: int,
    fabric: Fabric,
    log: str,
) -> None:
    """Prints the optimizer as it really runs, what it trains on, and where it is logged."""
    console = _console()
    if run.optimizer.rich_console:
        tables(run, record)
    console.print(f"data      {escape(spectra.source)}")
    console.print(
        f"          {len(spectra.train_inputs)} spectra to train on, "
        f"{len(spectra.validation_inputs)} to validate on, split by blocks of 20"
    )
    where = str(fabric.device) if fabric.world_size == 1 else f"{fabric.world_size} processes"
    console.print(f"steps     {total_steps} on {where}, {fabric._precision.precision}")
    console.print(f"run       {escape(record['run_folder'])}")
    if log:
        console.print(f"log       {escape(log)}")


def tables(run: RunConfig, record: dict[str, Any]) -> None:
    """Prints the optimizer's settings, and which tensor went where and why."""
    console = _console()
    console.print(_optimizer_table(run, record))
    console.print(_groups_table(record))


def _groups_table(record: dict[str, Any]) -> Table:
    """Tensors that went the same way for the same reason share a line; the JSON names all."""
    alike: dict[tuple[bool, str], list[str]] = {}
    parameters: Counter[tuple[bool, str]] = Counter()
    for name, assigned in record["assignments"].items():
        key = (assigned["decays"], assigned["why"])
        alike.setdefault(key, []).append(name)
        parameters[key] += assigned["parameters"]
    table = Table(title="weight decay of each tensor", title_justify="left")
    for column in ("decays", "why", "tensors", "parameters", "which"):
        table.add_column(column, overflow="fold")
    for (decays, why), names in sorted(alike.items(), reverse=True):
        which = ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")
        row = ("yes" if decays else "no", why, str(len(names)))
        table.add_row(*map(escape, row), str(parameters[decays, why]), escape(which))
    return table


def _schedule(run: RunConfig) -> str:
    schedule, hint = run.scheduler, run.optimizer.warmup_steps
    if not run.optimizer.scheduler_hook:
        return "none (optimizer.scheduler_hook is false)"
    if schedule.name == "none":
        return "none"
    warmup = hint if schedule.warmup_steps is None else schedule.warmup_steps
    return f"{schedule.name}, {warmup} warm-up steps, min_lr {schedule.min_lr:g}"


def _optimizer_table(run: RunConfig, record: dict[str, Any]) -> Table:
    settings = run.optimizer
    table = Table(title=f"{settings.name}: {record['class']}", title_justify="left")
    table.add_column("setting")
    table.add_column("value", overflow="fold")
    rows: dict[str, Any] = dict(settings.hyperparameters)
    rows["lookahead"] = (
        f"k={settings.lookahead_k}, alpha={settings.lookahead_alpha}"
        if settings.lookahead_k
        else "off"
    )
    rows["clip_grad_norm"] = settings.clip_grad_norm or "off"
    rows["accumulate_steps"] = settings.accumulate_steps
    rows["scheduler"] = _schedule(run)
    for i, group in enumerate(record["param_groups"]):
        rows[f"group {i}"] = (
            f"{'by AdamW: ' if 'stepped_by' in group else ''}"
            f"{group['tensors']} tensors, {group['parameters']} parameters, "
            f"lr {group['lr']:g}, weight_decay {group['weight_decay']:g}; "
            f"{_bytes(group['bytes_per_parameter'])}"
        )
    for device, backend in record["backend"].items():
        rows[f"backend on {device}"] = backend
    rows["config hash"] = record["config_hash"][:12]
    for key, value in rows.items():
        table.add_row(key, escape(str(value)))
    return table


def _bytes(held: dict[str, float]) -> str:
    """What is held of a parameter: the sum, and its parts."""
    parts = ", ".join(f"{name} {size:.3g}" for name, size in held.items())
    return f"{sum(held.values()):.3g} bytes per parameter: {parts}"


@contextmanager
def progress(epochs: int, visible: bool) -> Iterator[Callable[[Epoch], None]]:
    """Yields what shows an epoch: a bar in a terminal, a line elsewhere."""
    console = _console()

    def line(epoch: Epoch) -> list[str]:
        head = (
            f"epoch {epoch.number:3d}/{epochs}  train/gll {epoch.loss:7.3f}  "
            f"val/gll {epoch.score:7.3f}  lr {epoch.lr:.2e}"
        )
        steps = [] if epoch.norm is None else [f"norm {epoch.norm:#7.3g}"]
        steps += [] if epoch.clipped is None else [f"clips {epoch.clipped:4.0%}"]
        steps += [f"skipped {epoch.skipped}"] if epoch.skipped else []
        return [head, "  ".join(steps)] if steps else [head]

    if not visible:
        yield lambda _: None
    elif not console.is_terminal:
        yield lambda epoch: print("  ".join(line(epoch)), flush=True)
    else:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
        with Progress(*columns, TimeRemainingColumn(), console=console) as bar:
            task = bar.add_task("epochs", total=epochs)

            def show(epoch: Epoch) -> None:  # the bar needs the room beside the first line
                head, *rest = line(epoch)
                shown = f"\n{' ' * head.index('train')}".join([head, *rest])
                bar.update(task, completed=epoch.number, description=shown)

            yield show


def finish(
    score: float,
    calibration: dict[str, float],
    baselines: dict[str, float],
    timing: dict[str, Any],
    spectra: Spectra,
    edges: Tensor,
    model: torch.nn.Module,
    run_folder: Path,
    pruned: int | None,
) -> None:
    """Prints the score beside the baselines; writes it, and a plot, to the run's folder.

    A run that a search has stopped is marked with the number of its epochs, `pruned`.
    """
    console = _console()
    table = Table(title="val/gll per bin, lower is better", title_justify="left")
    table.add_column("prediction")
    table.add_column("val/gll", justify="right")
    for name, value in baselines.items():
        table.add_row(name, f"{value:.3f}")
    mark = "" if pruned is None else f", pruned after epoch {pruned}"
    table.add_row(f"this run{mark}", f"{score:.3f}")
    console.print(table)
    console.print(
        f"targets within 1 sigma {calibration['within 1 sigma']:.1%} (calibrated: 68.3%), "
        f"within 2 sigma {calibration['within 2 sigma']:.1%} (95.4%)"
    )
    result = {
        "val/gll": score,
        "calibration": calibration,
        "baselines": baselines,
        "timing": timing,
    }
    result |= {} if pruned is None else {"pruned after epoch": pruned}
    export_json(result, run_folder / "result.json")
    title = f"val/gll {score:.3f} per bin; interpolation {baselines['interpolation']:.3f}"
    _plot(spectra, edges, model, title, run_folder / "predictions.png")


@torch.no_grad()
def _plot(spectra: Spectra, edges: Tensor, model: torch.nn.Module, title: str, path: Path) -> None:
    """Draws three validation spectra, what the model was given of them, and what it predicts."""
    logging.getLogger("matplotlib").setLevel(logging.WARNING)
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return
    device = next(model.parameters()).device
    count = len(spectra.validation_inputs)
    chosen = [count // 6, count // 2, 5 * count // 6]
    mean, sigma = model(spectra.validation_inputs[chosen].to(device))
    guess, _ = interpolation(spectra, edges)
    centres = spectra.axis[(edges[:-1] + edges[1:] - 1) // 2]
    figure = Figure(figsize=(13, 4.2), layout="constrained")
    for axes, row, m, s in zip(
        figure.subplots(1, 3, sharey=True), chosen, mean.cpu(), sigma.cpu(), strict=True
    ):
        axes.fill_between(
            spectra.axis, m - 2 * s, m + 2 * s, alpha=0.3, lw=0, label="mean ± 2 sigma"
        )
        axes.plot(spectra.axis, m, lw=1, label="mean")
        axes.plot(spectra.axis, guess[row], lw=0.8, color="tab:orange", label="interpolation")
        axes.plot(spectra.axis, spectra.validation_targets[row], "k--", lw=0.8, label="truth")
        given = spectra.validation_inputs[row]
        axes.plot(centres, given, ".", ms=4, color="tab:red", label="input channels")
        axes.set_title(f"validation spectrum {row}", fontsize=10)
        axes.set_xlabel(spectra.axis_name)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=5)
    figure.supylabel(f"{spectra.quantity} (standard deviations)")
    figure.suptitle(title)
    with whole(path) as file:
        figure.savefig(file, format="png", dpi=120)


def _console() -> Console:
    return Console(soft_wrap=True, highlight=False)
