"""`train` and `check`: configs are checked before Hydra, whose hints mislead, says anything."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from spectramind_fused.cli import hydra_main
from spectramind_fused.cli.arguments import Arguments
from spectramind_fused.config.check import ConfigError, RunError
from spectramind_fused.config.compose import Job, composed
from spectramind_fused.training import search

# Handed over here, so that no YAML names code.
_CALLBACKS = (
    "++hydra.callbacks.claim._target_=spectramind_fused.training.claims.Claim",
    "++hydra.callbacks.leaderboard._target_=spectramind_fused.training.leaderboard.Leaderboard",
)


def train(arguments: Arguments) -> None:
    """Trains: once, or once for each job of a sweep."""
    if arguments.only_shows:
        _with_hydra(arguments, "train")
        return
    job, *_ = _checked(arguments, writes=True)
    from spectramind_fused.training import processes

    if job.sweeps and processes.started_by_torchrun():
        instead = "sweep with training.devices=N instead, which starts them for each"
        _refuse(ConfigError([f"torchrun starts the processes of one run: {instead}"]))
    if processes.is_first():
        _with_hydra(arguments, "train")
    else:  # Hydra would make a folder of its own for every process
        _run(job.config, job.folder, [])


def _with_hydra(arguments: Arguments, command: str) -> None:
    does = "trains on spectra" if command == "train" else "checks what `train` would be given"
    header = f"++hydra.help.header='spectramind {command} {does}, as these configs say.'"
    sys.argv = [*arguments.for_hydra(), *_CALLBACKS, header]
    hydra_main.start(arguments.folder, arguments.name, _train)


def check(arguments: Arguments) -> None:
    """Says what is wrong with a config, or what it comes to; writes nothing."""
    if arguments.only_shows:
        _with_hydra(arguments, "check")
        return
    jobs = _checked(arguments, writes=False)
    from spectramind_fused.training import preview

    preview.show(jobs[0].config)
    if jobs[0].sweeps:
        print("This is a sweep: the tables are of its first job; the other values are fine too.")


def _checked(arguments: Arguments, writes: bool) -> list[Job]:
    """The jobs of a command line; ends the program where one of them cannot run."""
    problems: dict[str, None] = {}  # each once, in order
    jobs = []
    try:
        given = (arguments.folder, arguments.name, arguments.overrides, arguments.sweep)
        for job in composed(*given):
            jobs.append(job)
            problems |= dict.fromkeys(_wrong_with(job, writes))
    except ConfigError as error:
        problems |= dict.fromkeys(error.problems)
    if jobs and not problems:
        problems = dict.fromkeys(search.problems_of(jobs[0], arguments.of_runs()))
    if problems:
        _refuse(ConfigError(list(problems)))
    return jobs


def _wrong_with(job: Job, writes: bool) -> list[str]:
    """Everything wrong with one config."""
    from spectramind_fused.training import preview  # torch, of which Hydra's errors need nothing
    from spectramind_fused.training.settings import parse_run, unwritable

    try:
        run = parse_run(job.config)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # said when the real one is built
            preview.built(job.config)
    except ConfigError as error:
        return error.problems
    return unwritable(run, job.folder) if writes else []


def _refuse(error: ConfigError) -> None:
    from spectramind_fused.training import processes

    if processes.is_first():
        print(error, file=sys.stderr)
    sys.exit(2)


def _train(config: DictConfig) -> Any:
    OmegaConf.set_struct(config, True)
    runtime = HydraConfig.get()
    words = [override.removeprefix("++") for override in runtime.overrides.task]  # as typed
    folder = Path(runtime.runtime.output_dir)
    if runtime.sweeper.get("trial") is None:
        return _run(config, folder, words)
    from spectramind_fused.training.study import JobTrial

    told = runtime.sweeper
    pruner = told.pruner, dict(told.get(told.pruner, {}))
    trial = JobTrial(Path(runtime.sweep.dir).absolute(), told.trial, *pruner)
    score = _run(config, folder, words, trial.stops)
    trial.ends(score)
    return score


def _run(
    config: DictConfig,
    folder: Path,
    words: list[str],
    stops: Callable[[int, float], bool] | None = None,
) -> Any:
    from spectramind_fused.training import processes
    from spectramind_fused.training.loop import train  # imports Fabric, which takes a second

    try:
        return train(config, folder, words, stops)
    except ConfigError as error:
        return _refuse(error)
    except RunError as error:
        if processes.is_first() or isinstance(error, processes.LostProcess):
            processes.tell(str(error))
        sys.exit(1)
