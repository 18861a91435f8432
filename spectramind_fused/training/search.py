"""The sweeper that searches: Optuna draws each run's values from what the others came to.

It is Hydra's choice `hydra/sweeper=search`. Of Optuna nothing is imported before a search begins.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from spectramind_fused.config.check import ConfigError, Section
from spectramind_fused.config.compose import SEARCH, Job

_NEEDED = {"cmaes": ["cmaes"], "gp": ["scipy"]}  # by samplers, beside Optuna
_EXTRA = "pip install 'spectramind-fused[sweep]'"


@dataclass
class Settings:
    """What `hydra.sweeper` takes.

    Attributes:
        params: what is drawn, in Hydra's syntax: tag(log,interval(1e-4,1e-2)), choice(a,b),
            range(1,9); under a choice, as `optimizer=sgd`, what is drawn only beside it.
        n_trials: how many runs the study is to have in all, those of earlier starts included.
        n_jobs: how many runs at once; None: as many as hydra.launcher.n_jobs says, else one.
        seed: of the sampler.
        sampler: tpe, gp, random, cmaes or grid.
        pruner: none, median, percentile, halving or hyperband.
        tpe: what Optuna's sampler of that name is made with, by its own names; so for the others.
        median: likewise for a pruner.
        trial: which one a run is; told by the sweeper.
    """

    # Any: our own check says what is wrong with a value, where OmegaConf would only say that.
    _target_: str = SEARCH
    params: Any = None
    n_trials: Any = 20
    n_jobs: Any = None
    seed: Any = 0
    sampler: Any = "tpe"
    pruner: Any = "none"
    tpe: dict[str, Any] = field(default_factory=dict)
    gp: dict[str, Any] = field(default_factory=dict)
    random: dict[str, Any] = field(default_factory=dict)
    cmaes: dict[str, Any] = field(default_factory=dict)
    grid: dict[str, Any] = field(default_factory=dict)
    median: dict[str, Any] = field(default_factory=dict)
    percentile: dict[str, Any] = field(default_factory=lambda: {"percentile": 25.0})
    halving: dict[str, Any] = field(default_factory=dict)
    hyperband: dict[str, Any] = field(default_factory=dict)
    trial: Any = None


class Search(Sweeper):
    """Runs a search's trials, some at once, until its study has as many as it was to have."""

    def __init__(self, **settings: Any) -> None:
        self._settings = Settings(**settings)

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Hydra's: hands over what a launcher needs."""
        self._config, self._context = config, hydra_context
        self._launcher: Launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> None:
        """Hydra's: runs what remains, then says and draws what all came to."""
        from spectramind_fused.training import findings
        from spectramind_fused.training.space import Space
        from spectramind_fused.training.study import Asking

        told = self._settings
        space = Space.of(told.params, arguments)
        total = _total(told, space)
        folder = Path(self._config.hydra.sweep.dir)
        folder.mkdir(parents=True, exist_ok=True)
        OmegaConf.save(self._config, folder / "multirun.yaml")
        first = self._context.config_loader.load_sweep_config(self._config, space.first())
        drawing = (told.sampler, dict(getattr(told, told.sampler)), told.seed)
        asking = Asking(folder, space, total, drawing)
        with asking.alive():
            asking.take_back_the_lost()
            asking.keep(_settings(space, first))
            trials = f"{total} trials by {told.sampler}, {asking.done()} of them done"
            print(f"search    {trials}, in {folder.absolute()}", flush=True)
            while batch := asking.ask(self._at_once()):
                self._run(batch, asking)
        findings.show(asking.study, folder, space.fixed)

    def _run(self, trials: list[tuple[int, list[str]]], asking: Any) -> None:
        """Runs some trials at once; raises what a run has raised."""
        numbers = [number for number, _ in trials]
        jobs = [
            [*words, f"hydra.sweeper.trial={number}", f"hydra.sweep.subdir={number}"]
            for number, words in trials
        ]
        try:
            ended = self._launcher.launch(jobs, initial_job_idx=numbers[0])
        finally:
            asking.take_back(numbers)  # but a run that ends has told the study itself
        for each in ended:
            _ = each.return_value  # raises

    def _at_once(self) -> int:
        told = self._settings.n_jobs or self._config.hydra.launcher.get("n_jobs") or 1
        return int(told) if told > 0 else os.cpu_count() or 1  # as joblib reads -1


# Hydra makes sweepers only of classes that it knows by a name within hydra_plugins. A package of
# that name would be imported by every Hydra program beside ours, so the class is listed here.
Plugins.instance().class_name_to_class[SEARCH] = Search
ConfigStore.instance().store(group="hydra/sweeper", name="search", node=Settings)


def problems_of(job: Job, words: list[str]) -> list[str]:
    """What is wrong with a search, found before its first run.

    Args:
        job: the first of its jobs.
        words: what was typed for its runs.
    """
    if not job.searches:
        return []
    problems: list[str] = []
    settings: Any = OmegaConf.to_container(job.sweeper, resolve=True)
    needed = ["optuna", *_NEEDED.get(settings["sampler"], [])]
    if missing := [name for name in needed if find_spec(name) is None]:
        return [f"hydra/sweeper=search needs {' and '.join(missing)}: {_EXTRA}."]
    from spectramind_fused.training import study
    from spectramind_fused.training.space import Space

    section = Section("hydra.sweeper", settings, problems)
    section.text("sampler", "tpe", study.SAMPLERS)
    section.text("pruner", "none", study.PRUNERS)
    section.whole("n_trials", 20, least=1)
    section.whole("seed", 0)
    if section.on("n_jobs"):
        section.whole("n_jobs", 1, least=1)
    try:
        space = Space.of(settings["params"], words)
    except ConfigError as error:
        return [*problems, *error.problems]
    if settings["sampler"] == "grid" and space.cells is None:
        section.wrong("sampler", "is grid, which takes choices and ranges, but no intervals and no "
                      "conditions")  # fmt: skip
    if settings["sampler"] == "gp" and settings["pruner"] != "none":
        section.wrong("pruner", "needs another sampler than gp, which learns nothing from stopped "
                      "runs and would draw the same again: set sampler=tpe")  # fmt: skip
    if problems:
        return problems
    for kind, make in (
        ("sampler", lambda name, options: study.sampler(name, options, 0, 0, space)),
        ("pruner", study.pruner),
    ):
        try:
            make(name := settings[kind], settings.get(name, {}))
        except (TypeError, ValueError) as error:
            section.wrong(name, f"is not what Optuna takes: {error}")
    if reason := study.refusal(job.folder, _settings(space, job.config)):
        problems.append(f"{reason}: give another hydra.sweep.dir, or remove that folder.")
    return problems


def _total(told: Settings, space: Any) -> int:
    """How many trials a study is to have; a grid no more than it has cells."""
    cells = space.cells if told.sampler == "grid" else None
    return int(told.n_trials if cells is None else min(told.n_trials, cells))


def _settings(space: Any, config: Any) -> dict[str, Any]:
    """What all runs of a study share, by key."""
    from spectramind_fused.config.schema import plain

    own = [str(key) for key in config if key != "hydra"]
    return {**_flat(plain(OmegaConf.masked_copy(config, own))), **space.described()}


def _flat(tree: dict[str, Any], path: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{path}{key}.") if isinstance(value, dict) else {path + key: value}
    return flat
