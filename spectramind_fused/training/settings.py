"""The sections of a run's config that are not the optimizer's, checked and typed."""

from __future__ import annotations

import os
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from spectramind_fused import files
from spectramind_fused.config import records
from spectramind_fused.config.check import MOST_SEED, ConfigError, Section, shown
from spectramind_fused.config.schema import (
    OptimizerConfig,
    SchedulerConfig,
    plain,
    read_optimizer,
    read_scheduler,
)
from spectramind_fused.training import checkpoint, processes


@dataclass(frozen=True)
class DataSettings:
    """The `data` section."""

    name: str
    channels: int
    bins: int
    noise: float
    validation: float
    seed: int


@dataclass(frozen=True)
class TrainingSettings:
    """The `training` and `model` sections."""

    hidden: tuple[int, ...]
    epochs: int
    batch_size: int
    seed: int
    precision: str
    accelerator: str
    devices: int
    checkpoint_every: int
    keep_checkpoints: int
    resume: Path | None

    @property
    def parameter_dtype(self) -> torch.dtype:
        """What the model's parameters are kept in."""
        return torch.bfloat16 if self.precision == "bf16-true" else torch.float32


@dataclass(frozen=True)
class LoggerSettings:
    """The `logger` section."""

    name: str = "none"
    every: int = 1
    project: str = ""  # of wandb
    offline: bool = True  # likewise
    experiment: str = ""  # of mlflow
    tracking_uri: str | None = None  # likewise; None: a database in the run's folder


@dataclass(frozen=True)
class RunConfig:
    """A whole config, typed."""

    data: DataSettings
    training: TrainingSettings
    optimizer: OptimizerConfig
    scheduler: SchedulerConfig
    logger: LoggerSettings


def parse_run(config: Any) -> RunConfig:
    """Checks a root config, every section of it.

    Raises:
        ConfigError: lists everything wrong with it.
    """
    problems: list[str] = []
    root = plain(config)
    sections = Section("config", root, problems)
    sections.known(("scheduler", "model", "training", "data", "logger", "optimizer", "policy"))
    if "optimizer" not in root:
        raise ConfigError(["optimizer is required: choose one, such as optimizer=adamw"])
    optimizer = read_optimizer(root, problems)
    scheduler = read_scheduler(root, problems)
    if optimizer.type == "SparseAdam":
        problems.append(
            "optimizer.type SparseAdam takes sparse gradients, which no layer here has."
        )
    if "policy" in root:
        _policy(Section("policy", root["policy"], problems), optimizer)
    training = _training(root, problems)
    data = _data(Section("data", root.get("data", {}), problems))
    logger = _logger(Section("logger", root.get("logger", {}), problems))
    if too_large := _too_large((data.channels, *training.hidden, 2 * data.bins)):
        problems.append(too_large)
    if training.precision not in ("auto", "32") and not optimizer.precision_safe:
        problems.append(
            f"training.precision={training.precision} contradicts optimizer.precision_safe=false: "
            "set one of them otherwise."
        )
    if problems:
        raise ConfigError(problems)
    return RunConfig(data, training, optimizer, scheduler, logger)


def unwritable(run: RunConfig, folder: Path) -> list[str]:
    """What of a run's output cannot be written, found before anything is.

    Args:
        run: the checked config.
        folder: of the run, or of the sweep.
    """
    settings = run.optimizer
    wanted = {"hydra.run.dir or hydra.sweep.dir": folder / "optimizer.json"}
    if settings.hash_to_debuglog:
        wanted["optimizer.hash_to_debuglog"] = records.DEBUG_LOG
    if settings.log_config and settings.export_json:
        wanted["optimizer.export_json"] = Path(settings.export_json)
    reasons = {key: files.unwritable(path) for key, path in wanted.items()}
    return [f"{key}: {reason}." for key, reason in reasons.items() if reason]


def _policy(section: Section, optimizer: OptimizerConfig) -> None:
    """Values tuned for one optimizer are not to reach another one unnoticed."""
    section.known(("name", "type"))
    name, kind = section.text("name"), section.text("type")
    if optimizer.type and kind != optimizer.type:
        section.wrong(
            "type",
            f"is {kind}: the values of {name} are tuned for it, not for {optimizer.type}; choose "
            f"it, or set policy.type={optimizer.type} and an optimizer.lr of its own",
        )


def _too_large(widths: tuple[int, ...]) -> str:
    """Whether a model with layers of these widths has no room beside its gradients."""
    size, memory = 8 * sum(inputs * outputs for inputs, outputs in pairwise(widths)), _memory()
    if size <= memory:
        return ""
    return (
        f"model.hidden makes weights and gradients of {size / 1e9:.3g} GB, and this machine has "
        f"{memory / 1e9:.3g}: give smaller widths."
    )


def _memory() -> float:
    """Bytes of the machine's memory, where it says so."""
    if not hasattr(os, "sysconf"):
        return float("inf")
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _data(section: Section) -> DataSettings:
    section.known(("name", "channels", "bins", "noise", "validation", "seed"))
    settings = DataSettings(
        name=section.text("name", "spectra", ("spectra", "synthetic")),
        channels=section.whole("channels", 32, least=1),
        bins=section.whole("bins", 283, least=1, most=100_000),
        noise=section.number("noise", 0.05),
        validation=section.number("validation", 0.2, least=0.01, most=0.9),
        seed=section.whole("seed", 0, most=MOST_SEED),
    )
    if settings.channels > settings.bins:
        section.wrong("channels", f"should be at most data.bins={settings.bins}")
    return settings


_LOGGER_KEYS: dict[str, tuple[str, ...]] = {
    "none": (),
    "csv": (),
    "tensorboard": (),
    "wandb": ("project", "offline"),
    "mlflow": ("experiment", "tracking_uri"),
}
_LOGGER_PACKAGES = {
    "tensorboard": ("tensorboard",),
    "wandb": ("wandb", "pytorch_lightning"),
    "mlflow": ("mlflow", "sqlalchemy", "alembic", "pytorch_lightning"),
}


def _logger(section: Section) -> LoggerSettings:
    name = section.text("name", "none", _LOGGER_KEYS)
    section.known(("name", "every", *_LOGGER_KEYS[name]))
    absent = [package for package in _LOGGER_PACKAGES.get(name, ()) if not _is_there(package)]
    if absent:
        section.wrong("name", f"{name} needs the package {', '.join(absent)}: "
                      "pip install 'spectramind-fused[loggers]'")  # fmt: skip
    return LoggerSettings(
        name,
        every=section.whole("every", 1, least=1),
        project=section.text("project", "spectramind"),
        offline=section.flag("offline", True),
        experiment=section.text("experiment", "spectramind"),
        tracking_uri=section.text("tracking_uri") if section.on("tracking_uri") else None,
    )


def _is_there(package: str) -> bool:
    """Whether it can be imported; a folder of its name, as wandb leaves them, is no package."""
    spec = find_spec(package)
    return spec is not None and spec.origin is not None


def _check_spread(section: Section, accelerator: str, devices: int, batch_size: int) -> None:
    """Whether there are so many devices, and each gets an equal part of a batch."""
    count = processes.count(devices)
    if devices not in (1, count):
        section.wrong("devices", f"is {devices}, but torchrun has started {count} processes")
    elif devices > 1 and accelerator != "cpu" and torch.cuda.is_available():
        found = torch.cuda.device_count()
        if devices > found:
            instead = "training.accelerator=cpu takes any number"
            section.wrong("devices", f"is {devices}, but {found} GPUs were found: {instead}")
    if batch_size % count:
        section.wrong("batch_size", f"is {batch_size}, of which {count} processes get equal parts: "
                      f"give a multiple of {count}")  # fmt: skip


_TRAINING_KEYS = (
    "epochs", "batch_size", "seed", "precision", "accelerator", "devices", "checkpoint_every",
    "keep_checkpoints", "resume",
)  # fmt: skip


def _training(root: dict[str, Any], problems: list[str]) -> TrainingSettings:
    model = Section("model", root.get("model", {}), problems)
    model.known(("hidden",))
    hidden = model.values.get("hidden", [256, 256])
    if not isinstance(hidden, list) or not all(type(h) is int and 0 < h < 2**31 for h in hidden):
        model.wrong("hidden", f"should be a list of layer widths, not {shown(hidden)}")
        hidden = []
    section = Section("training", root.get("training", {}), problems)
    section.known(_TRAINING_KEYS)
    if section.values.get("precision") == 32:  # as YAML reads it
        section.values["precision"] = "32"
    accelerator = section.text("accelerator", "auto", ("auto", "cpu", "cuda", "mps"))
    devices = section.whole("devices", 1, least=1)
    batch_size = section.whole("batch_size", 32, least=1)
    _check_spread(section, accelerator, devices, batch_size)
    epochs = section.whole("epochs", 30, least=1)
    resume = Path(section.text("resume")) if section.on("resume") else None
    if resume is not None and not os.path.isfile(resume):  # also of a path that is too long
        instead = checkpoint.missing(resume, epochs)
        section.problems.append(f"training.resume={resume} is no file: {instead}.")
    return TrainingSettings(
        hidden=tuple(hidden),
        epochs=epochs,
        batch_size=batch_size,
        seed=section.whole("seed", 0, most=MOST_SEED),
        precision=section.text("precision", "auto", ("auto", "32", "bf16", "bf16-true", "fp16")),
        accelerator=accelerator,
        devices=devices,
        checkpoint_every=section.whole("checkpoint_every", 10),
        keep_checkpoints=section.whole("keep_checkpoints", 1, least=1),
        resume=resume,
    )
