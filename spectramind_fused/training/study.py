"""A search's study on disk: who asks for trials, how they end, and what a killed process left."""

from __future__ import annotations

import functools
import json
import math
import os
import socket
import uuid
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from filelock import FileLock, Timeout
from optuna.samplers import BaseSampler, RandomSampler
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.trial import TrialState

from spectramind_fused.training.space import Space

FILE = "study.journal"
SAMPLERS: dict[str, Any] = {
    "tpe": optuna.samplers.TPESampler,
    "gp": optuna.samplers.GPSampler,
    "random": RandomSampler,
    "cmaes": optuna.samplers.CmaEsSampler,
    "grid": optuna.samplers.GridSampler,
}
PRUNERS: dict[str, Any] = {
    "none": optuna.pruners.NopPruner,
    "median": optuna.pruners.MedianPruner,
    "percentile": optuna.pruners.PercentilePruner,
    "halving": optuna.pruners.SuccessiveHalvingPruner,
    "hyperband": optuna.pruners.HyperbandPruner,
}
# What of a study counts towards its trials: those given up are drawn again.
_COUNTED = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.RUNNING)


class _Lock(JournalFileOpenLock):
    """A lock by an exclusive file: it works on every system, and on a cluster's shared folders.

    Who takes it finds whole lines. Of one that a killed process or a full disk has cut off, Optuna
    reads nothing; but it would write the next one behind it, and could then read neither.
    """

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self._path = path

    def acquire(self) -> bool:
        """Waits for the lock, then drops a line that was cut off."""
        taken = super().acquire()
        try:
            self._drop_what_was_cut_off()
        except BaseException:  # or everybody waits for this one
            self.release()
            raise
        return taken

    def _drop_what_was_cut_off(self) -> None:
        with open(self._path, "r+b") as file:
            if file.seek(0, os.SEEK_END):
                file.seek(-1, os.SEEK_END)
                if file.read(1) != b"\n":
                    file.seek(0)
                    file.truncate(file.read().rfind(b"\n") + 1)


@functools.cache
def opened(folder: Path) -> optuna.Study:
    """The study of a sweep's folder, made where there is none; one object in a process."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    path = str(folder / FILE)
    storage = JournalStorage(JournalFileBackend(path, _Lock(path)))
    given: Any = {"storage": storage, "study_name": "search"}
    given["sampler"] = RandomSampler()  # a job only reports; drawing is left to those that ask
    if (folder / FILE).stat().st_size:
        return optuna.load_study(**given)
    return optuna.create_study(**given, load_if_exists=True)


def sampler(name: str, options: dict[str, Any], seed: int, index: int, space: Space) -> BaseSampler:
    """The sampler of one trial, whose draws depend on the study and on its own seed alone.

    So a study that was killed goes on with the values it would have drawn.

    Args:
        name: one of SAMPLERS.
        options: by the names of its constructor.
        seed: of the search.
        index: how many trials came before.
        space: what is searched.

    Raises:
        TypeError: there is no such option.
        ValueError: an option has a value it cannot have.
    """
    if name == "grid":  # its seed is the order of the cells
        return optuna.samplers.GridSampler(space.grid(), seed=seed, **options)
    own = int(np.random.SeedSequence([seed, index]).generate_state(1)[0])
    usual: dict[str, Any] = {}
    if name == "cmaes":  # choices are drawn apart, which needs no warning
        usual = {"warn_independent_sampling": False, "consider_pruned_trials": True}
    with _no_experimental_warnings():
        made: BaseSampler = SAMPLERS[name](seed=own, **usual | options)
    return made


def pruner(name: str, options: dict[str, Any]) -> optuna.pruners.BasePruner:
    """The pruner of that name; raises as `sampler` does."""
    with _no_experimental_warnings():
        made: optuna.pruners.BasePruner = PRUNERS[name](**options)
    return made


@dataclass(frozen=True)
class JobTrial:
    """The trial that a run is, as the run's own process knows it.

    Attributes:
        folder: of the sweep.
        number: of the trial in its study.
        pruner: by name, and its options.
        options: see pruner.
    """

    folder: Path
    number: int
    pruner: str
    options: dict[str, Any]

    def stops(self, epoch: int, score: float) -> bool:
        """Tells the study an epoch's val/gll; whether the run is to stop."""
        study = opened(self.folder)
        study.pruner = pruner(self.pruner, self.options)
        frozen = study.get_trials(deepcopy=False)[self.number]
        trial = optuna.Trial(study, frozen._trial_id)
        try:
            trial.report(score, epoch - 1)  # Optuna's pruners count from 0
        except RuntimeError:  # the search was killed, and another process has given this run up
            return False
        hopeless = not math.isfinite(score) and self.pruner != "none"
        if not (hopeless or trial.should_prune()):
            return False
        study.tell(self.number, state=TrialState.PRUNED, skip_if_finished=True)
        return True

    def ends(self, score: float) -> None:
        """Tells the study what the run came to; one that diverged is the worst there is."""
        value = math.inf if math.isnan(score) else score
        opened(self.folder).tell(self.number, value, skip_if_finished=True)


class Asking:
    """A process that asks a study for trials, beside others that do.

    Args:
        folder: of the sweep.
        space: what is drawn.
        total: how many trials the study is to have in all.
        drawing: name, options and seed of the sampler.
    """

    def __init__(
        self, folder: Path, space: Space, total: int, drawing: tuple[str, dict[str, Any], int]
    ) -> None:
        self.study = opened(folder)
        self._folder, self._space, self._total, self._drawing = folder, space, total, drawing
        self._name = f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        self._turn = FileLock(folder / ".asking.lock")

    @contextmanager
    def alive(self) -> Iterator[None]:
        """Holds a lock by which others see that this process lives; a killed one lets go of it."""
        lock = self._lock_of(self._name)
        with lock:
            try:
                yield
            finally:
                Path(lock.lock_file).unlink(missing_ok=True)

    def take_back_the_lost(self) -> None:
        """Has trials of processes that are no more drawn again."""
        with self._turn:
            running = self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
            gone = [t for t in running if self._is_gone(t.user_attrs.get("process", "nobody"))]
            self.take_back([trial.number for trial in gone])

    def take_back(self, numbers: list[int]) -> None:
        """Has those of these trials that have no result drawn again, with the same values."""
        for number in numbers:
            trial = self.study.get_trials(deepcopy=False)[number]
            if trial.state.is_finished():
                continue
            self.study.tell(number, state=TrialState.FAIL)
            if trial.user_attrs.get("drawn"):
                self.study.enqueue_trial(trial.params)

    def keep(self, settings: dict[str, Any]) -> None:
        """Notes in the study what all its runs share."""
        self.study.set_user_attr("settings", settings)

    def done(self) -> int:
        """How many trials have a result, pruned ones included."""
        ended = (TrialState.COMPLETE, TrialState.PRUNED)
        return len(self.study.get_trials(deepcopy=False, states=ended))

    def remaining(self) -> int:
        """How many trials nobody has asked for."""
        return self._total - len(self.study.get_trials(deepcopy=False, states=_COUNTED))

    def ask(self, most: int) -> list[tuple[int, list[str]]]:
        """Numbers and overrides of the next trials, as many as remain; none at the end."""
        asked = []
        with self._turn, _no_experimental_warnings():
            for _ in range(min(most, self.remaining())):
                name, options, seed = self._drawing
                index = self._total - self.remaining()
                self.study.sampler = sampler(name, options, seed, index, self._space)
                trial = self.study.ask()
                trial.set_user_attr("process", self._name)
                words = self._space.draw(trial)
                trial.set_user_attr("drawn", True)
                asked.append((trial.number, words))
            self.study.sampler = RandomSampler()
        return asked

    def _lock_of(self, process: str) -> FileLock:
        return FileLock(self._folder / f".searching-{process}.lock")

    def _is_gone(self, process: str) -> bool:
        lock = self._lock_of(process)
        try:
            with lock.acquire(timeout=0):
                pass
        except Timeout:
            return False
        Path(lock.lock_file).unlink(missing_ok=True)
        return True


def refusal(folder: Path, settings: dict[str, Any]) -> str:
    """Why a search with these settings cannot go on in a folder; empty where it can."""
    if not (folder / FILE).is_file():
        other = (folder / "0" / ".hydra").is_dir()
        return f"{folder} holds the runs of another sweep" if other else ""
    try:
        kept = opened(folder).user_attrs.get("settings")
    except Exception as error:  # a damaged file fails in many ways
        reason = str(error).split("\n")[0] or type(error).__name__
        return f"{folder / FILE} cannot be read as a study ({reason})"
    if kept is None:  # killed before its first trial
        return ""
    now = json.loads(json.dumps(settings))
    changed = sorted(k for k in kept.keys() | now.keys() if kept.get(k) != now.get(k))
    return f"{folder} holds a search with another {', '.join(changed)}" if changed else ""


@contextmanager
def _no_experimental_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        yield
