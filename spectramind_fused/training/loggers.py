"""Where a run's figures go beside the console and `history.csv`: one of Lightning's loggers."""

from __future__ import annotations

import logging
import os
import shutil
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from time import time
from types import TracebackType
from typing import TYPE_CHECKING, Any

from spectramind_fused import files
from spectramind_fused.config import records
from spectramind_fused.config.check import ConfigError, RunError
from spectramind_fused.training.csv_log import CsvLog
from spectramind_fused.training.settings import LoggerSettings

if TYPE_CHECKING:
    from lightning_fabric.loggers.logger import Logger

_Rows = Iterable[tuple[int, dict[str, float | None]]]


class Log:
    """The log of a run, in `log` in its folder; with `logger=none` nothing.

    A run that is resumed goes on with the log beside its checkpoint: in another folder with a copy.
    """

    def __init__(self, settings: LoggerSettings, run_folder: Path) -> None:
        """Writes nothing yet.

        Args:
            settings: the `logger` section.
            run_folder: the run's own.
        """
        self._settings = settings
        self._folder = run_folder / "log"
        self._logger: Logger | None = None

    def open(
        self, done: int, before: Path, hyperparameters: dict[str, Any], score: float
    ) -> Exception | None:
        """Begins the log, or goes on with one; returns what is wrong where that fails.

        Args:
            done: how many optimizer steps were taken before.
            before: the folder of the run that took them; may be the same.
            hyperparameters: the run's config, flat.
            score: val/gll after those steps.
        """
        name, folder = self._settings.name, self._folder
        if name == "none":
            return None
        if reason := files.unwritable(folder / "metrics.csv"):
            return ConfigError([f"logger={name}: {reason}."])
        try:
            goes_on = bool(done) and _bring(before / "log", folder)
            folder.mkdir(parents=True, exist_ok=True)
            self._logger = _OPENED[name](self._settings, folder, done, goes_on)
            if not goes_on:
                _log_hyperparameters(self._logger, folder, hyperparameters, score, done)
        except OSError as error:
            return RunError(files.reason(error))
        except Exception as error:  # a package, a database or a server, each in ways of its own
            return ConfigError([f"logger={name} cannot start: {_first_line(error)}"])
        return None

    def look(self) -> str:
        """How to look at it; empty without a logger."""
        return _LOOK[self._settings.name](self._settings, self._folder) if self._logger else ""

    def steps(self, rows: _Rows) -> None:
        """Logs optimizer steps, or every so many, as `logger.every` says."""
        self.write([(step, figures) for step, figures in rows if step % self._settings.every == 0])

    def write(self, rows: _Rows) -> None:
        """Logs figures, each row at a step; a logger that fails ends, and the run goes on."""
        if self._logger is None:
            return
        known = [(at, {k: float(v) for k, v in row.items() if v is not None}) for at, row in rows]
        try:
            if self._settings.name == "mlflow":
                _write_together(self._logger, known)
            else:
                for step, figures in known:
                    self._logger.log_metrics(figures, step)
                self._logger.save()
        except Exception as error:
            self._logger = None
            warnings.warn(
                f"logger={self._settings.name} failed, and logs no more: {_first_line(error)}. The "
                "run goes on; history.csv has its epochs.",
                stacklevel=2,
            )

    def __enter__(self) -> Log:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None
    ) -> None:
        """Says how the run ended."""
        if self._logger is None:
            return
        if self._settings.name == "wandb":  # the logger leaves the run open, for the next to go on
            self._logger.experiment.finish(exit_code=0 if kind is None else 1)  # type: ignore[attr-defined]
        else:
            self._logger.finalize("success" if kind is None else "failed")
        self._logger = None


def _bring(there: Path, folder: Path) -> bool:
    """Copies the log of the run before, unless it lies here; returns whether there is one.

    A checkpoint may have been moved to where another `log` lies: a run's has a history beside it.
    """
    if there.resolve() != folder.resolve():
        if folder.exists() or not there.is_dir() or not (there.parent / "history.csv").is_file():
            return False
        part = folder.with_name(f".{folder.name}.part")  # where a killed process may have left one
        shutil.rmtree(part, ignore_errors=True)
        shutil.copytree(there, part, symlinks=True)
        part.rename(folder)
    return folder.is_dir()


def _csv(settings: LoggerSettings, folder: Path, done: int, goes_on: bool) -> Any:
    return CsvLog(folder, done if goes_on else None)


def _tensorboard(settings: LoggerSettings, folder: Path, done: int, goes_on: bool) -> Logger:
    from lightning_fabric.loggers.tensorboard import TensorBoardLogger

    # TensorBoard then forgets what an earlier run here has logged from this step on.
    return TensorBoardLogger(folder, name="", version="", purge_step=done + goes_on)


def _wandb(settings: LoggerSettings, folder: Path, done: int, goes_on: bool) -> Logger:
    import wandb
    from pytorch_lightning.loggers import WandbLogger

    run = wandb.init(
        name=_name(folder),
        dir=folder,
        project=settings.project,
        id=_id_of(folder, "wandb") if goes_on else None,
        resume="allow",
        mode="offline" if settings.offline else None,
        settings=wandb.Settings(silent=settings.offline),
    )
    run.define_metric("trainer/global_step")  # as the logger calls our steps
    run.define_metric("*", step_metric="trainer/global_step", step_sync=True)
    logger = WandbLogger(experiment=run)
    _keep_id(folder, "wandb", run.id)
    return logger


def _mlflow(settings: LoggerSettings, folder: Path, done: int, goes_on: bool) -> Logger:
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # it would tell its makers of runs
    import mlflow  # noqa: F401  # sets the levels of its messages
    from pytorch_lightning.loggers import MLFlowLogger

    for name in ("mlflow", "alembic", "pytorch_lightning.loggers.mlflow"):
        logging.getLogger(name).setLevel(logging.ERROR)  # that a database is new
    logger = MLFlowLogger(
        settings.experiment,
        run_name=_name(folder),
        tracking_uri=_uri(settings, folder),
        artifact_location=None if settings.tracking_uri else folder.absolute().as_uri(),
        run_id=_id_of(folder, "mlflow") if goes_on else None,
    )
    _keep_id(folder, "mlflow", str(logger.run_id))
    return logger


_OPENED: dict[str, Callable[[LoggerSettings, Path, int, bool], Logger]] = {
    "csv": _csv,
    "tensorboard": _tensorboard,
    "wandb": _wandb,
    "mlflow": _mlflow,
}
_LOOK: dict[str, Callable[[LoggerSettings, Path], str]] = {
    "csv": lambda _, folder: f"{folder}/metrics.csv",
    "tensorboard": lambda _, folder: f"tensorboard --logdir {folder}",
    "wandb": lambda s, folder: f"wandb sync {folder}/wandb/*run-*" if s.offline else s.project,
    "mlflow": lambda s, folder: f"mlflow ui --backend-store-uri {_uri(s, folder)}",
}


def _log_hyperparameters(
    logger: Any, folder: Path, hyperparameters: dict[str, Any], score: float, done: int
) -> None:
    """Logs what the run was given, and its val/gll before the first step."""
    name, before = type(logger).__name__, {"val/gll": score}
    if name == "TensorBoardLogger":  # shows them beside a figure
        logger.log_hyperparams(hyperparameters, before, done)
        return
    if name == "CsvLog":  # has no place for them
        records.export_json(hyperparameters, folder / "hyperparameters.json")
    else:
        logger.log_hyperparams(hyperparameters)
    logger.log_metrics(before, done)


def _write_together(logger: Any, rows: list[tuple[int, dict[str, float]]]) -> None:
    """Writes all rows in one transaction: MLflow's takes 20 ms, and its logger makes one a row."""
    from mlflow.entities import Metric

    now = int(time() * 1000)
    metrics = [Metric(key, value, now, step) for step, row in rows for key, value in row.items()]
    logger.experiment.log_batch(logger.run_id, metrics)


def _uri(settings: LoggerSettings, folder: Path) -> str:
    return settings.tracking_uri or f"sqlite:///{(folder / 'mlflow.db').absolute()}"


def _name(folder: Path) -> str:
    """What a run is called where many are listed: the end of its folder's path."""
    return "/".join(folder.absolute().parts[-3:-1])


def _id_of(folder: Path, name: str) -> str | None:
    """Which of a server's runs this is, if it is one."""
    path = folder / f"{name}_run_id.txt"
    return path.read_text(encoding="utf-8").strip() if path.is_file() else None


def _keep_id(folder: Path, name: str, run_id: str) -> None:
    files.write_whole(folder / f"{name}_run_id.txt", f"{run_id}\n")


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
