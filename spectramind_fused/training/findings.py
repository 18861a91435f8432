"""What a search came to: the best run in words and as a file, and Optuna's plots."""

from __future__ import annotations

import shlex
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import TrialState

from spectramind_fused.config.records import export_json
from spectramind_fused.files import whole
from spectramind_fused.training.space import written


def show(study: optuna.Study, folder: Path, fixed: list[str]) -> None:
    """Prints the best run and how to run it again; writes `best.json` and the plots.

    Args:
        study: the search's.
        folder: of the sweep.
        fixed: what every run was given, as typed.
    """
    trials = study.get_trials(deepcopy=False)
    states = Counter(trial.state for trial in trials)
    ended, pruned = states[TrialState.COMPLETE], states[TrialState.PRUNED]
    print(f"trials    {ended} ended, {pruned} pruned, {states[TrialState.RUNNING]} still run")
    if not ended:
        return
    best = study.best_trial
    drawn = [f"{key.split(' | ')[0]}={written(value)}" for key, value in best.params.items()]
    best_run = {"run": str(best.number), "val/gll": best.value, "overrides": drawn}
    export_json(best_run, folder / "best.json")
    print(f"best      val/gll {best.value:.4f} by run {best.number}: {' '.join(drawn)}")
    words = [word.lstrip("+") for word in fixed] + drawn
    print(f"again     spectramind train {shlex.join(words)} hydra.mode=RUN")
    print(f"plots     {', '.join(_plots(study, folder))}")


def _plots(study: optuna.Study, folder: Path) -> list[str]:
    """Draws Optuna's plots of a study as PNG; returns their names."""
    from matplotlib import pyplot
    from optuna.visualization import matplotlib as plots

    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    drawn: dict[str, Callable[[], Any]] = {}
    drawn["history"] = lambda: plots.plot_optimization_history(study, target_name="val/gll")
    drawn["slice"] = lambda: plots.plot_slice(study, target_name="val/gll")
    if len({trial.value for trial in complete}) > 1:
        seeded: Any = optuna.importance.FanovaImportanceEvaluator(seed=0)
        drawn["importance"] = lambda: plots.plot_param_importances(study, evaluator=seeded)
    before = pyplot.get_backend()
    pyplot.switch_backend("agg")
    names = []
    for name, draw in drawn.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that matplotlib's plots are experimental
            draw()
            figure = pyplot.gcf()
            if name == "slice":
                _make_room(figure)
            with whole(folder / f"{name}.png") as file:
                figure.savefig(file, format="png", dpi=120, bbox_inches="tight")
        pyplot.close("all")
        names.append(f"{name}.png")
    pyplot.switch_backend(before)
    return names


def _make_room(figure: Any) -> None:
    """For the labels of values, which overlap in Optuna's own layout."""
    figure.set_size_inches(1 + 2.6 * len(figure.axes), 4.8)
    for axes in figure.axes[:-1]:  # the last is the colour bar
        axes.tick_params(axis="x", which="both", labelrotation=60, labelsize=8)
