"""The run: build, train, validate, record. Devices, precision and processes are Fabric's."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from spectramind_fused import files
from spectramind_fused.config import build_optimizer, build_scheduler, records
from spectramind_fused.config.check import RunError
from spectramind_fused.config.overrides import flat
from spectramind_fused.config.schema import OptimizerConfig, plain
from spectramind_fused.optim import FusedStep, Options
from spectramind_fused.training import checkpoint, history, kept, processes, report
from spectramind_fused.training.data import Spectra, channel_edges, load_spectra
from spectramind_fused.training.interrupts import Deferred, Interrupted
from spectramind_fused.training.keeper import Keeper
from spectramind_fused.training.loggers import Log
from spectramind_fused.training.model import SpectrumMLP, baselines, calibration, gll
from spectramind_fused.training.settings import LoggerSettings, RunConfig, parse_run
from spectramind_fused.training.stopwatch import Stopwatch
from spectramind_fused.training.watch import Watch

_FABRIC_PRECISION = {
    "32": "32-true",
    "bf16": "bf16-mixed",
    "fp16": "16-mixed",
    "bf16-true": "bf16-true",
}

# Is told the number of epochs done and the val/gll; whether the run is to stop.
Stops = Callable[[int, float], bool]


def train(config: Any, run_folder: Path, overrides: list[str], stops: Stops | None = None) -> float:
    """Trains as a config says and leaves records and a checkpoint in the run's folder.

    Args:
        config: the root config.
        run_folder: where `checkpoint.pt`, `optimizer.json`, `result.json` and the plot go.
        overrides: the command line, for the records.
        stops: is told each epoch's val/gll but the last; whether the run is to stop there.

    Returns:
        The last val/gll.

    Raises:
        ConfigError: the config, or the checkpoint it resumes from, cannot be used.
        Interrupted: Ctrl-C or SIGTERM ended it.
        RunError: a file could not be read or written.
    """
    run = parse_run(config)
    score: float = processes.launched(
        _train,
        config,
        run_folder,
        overrides,
        stops,
        accelerator=run.training.accelerator,
        devices=run.training.devices,
        precision=_FABRIC_PRECISION[precision(run)],
    )
    return score


def _train(
    fabric: Fabric, config: Any, run_folder: Path, overrides: list[str], stops: Stops | None
) -> float:
    """The run, in each of its processes; the first one speaks and writes."""
    run = parse_run(config)
    resume, epochs = run.training.resume, run.training.epochs
    resumed = checkpoint.load(resume, epochs) if resume else None
    spectra = load_spectra(run.data)
    torch.manual_seed(run.training.seed)
    plain_model = SpectrumMLP(run.data.channels, run.data.bins, run.training.hidden)
    plain_model.to(run.training.parameter_dtype)
    plain_optimizer = build_optimizer(plain_model, config)
    batches = _batches(fabric, run, spectra)
    steps_of_epoch = -(-len(batches) // run.optimizer.accumulate_steps)
    total_steps = run.training.epochs * steps_of_epoch
    scheduler = build_scheduler(plain_optimizer, config, total_steps)
    model, optimizer = fabric.setup(plain_model, plain_optimizer)
    if fabric.world_size > 1:
        _lay_out_buckets(fabric, model, optimizer, spectra)

    done = steps = 0
    before = run.training.resume.parent if run.training.resume else run_folder
    if resumed is not None:
        _warn_of_differences(resumed["config"], plain(config))
        checkpoint.restore(
            run.training.resume, resumed, model, optimizer, scheduler, fabric._precision
        )
        done = resumed["epoch"]
        steps = resumed["steps"] or done * steps_of_epoch
    score = gll(*_predictions(fabric, model, plain_optimizer, spectra)).item()

    described = records.describe(config, run.optimizer, plain_optimizer, plain_model)
    record = records.collect(described, run_folder, overrides)
    log = Log(run.logger if fabric.is_global_zero else LoggerSettings("none"), run_folder)
    problem = log.open(steps, before, flat(plain(config)), score)
    if fabric.is_global_zero and not problem:
        problem = _write_records(run, record, run_folder)
    if problem := fabric.broadcast(problem):  # all stop, or the others wait for the first
        raise problem
    if fabric.is_global_zero:
        kept.tidy(run_folder, before, done, run.training.keep_checkpoints)
        history.begin(run_folder, done, before)
        report.start(run, record, spectra, total_steps, fabric, log.look())

    pruned = None
    stopwatch = Stopwatch(fabric.device, steps_of_epoch)
    watch = Watch(fabric, plain_optimizer, log, steps)
    every = run.training.checkpoint_every if fabric.is_global_zero else 0
    keep = run.training.keep_checkpoints
    parts = (model, optimizer, scheduler, fabric._precision)
    keeper = Keeper(run_folder, every, run.training.epochs, plain(config), keep, *parts)
    with (
        Deferred() as signals,
        log,
        report.progress(run.training.epochs, fabric.is_global_zero) as show,
    ):
        try:
            for number in range(done + 1, run.training.epochs + 1):
                batches.sampler.set_epoch(number - 1)  # type: ignore[attr-defined]
                with stopwatch.epoch():
                    _train_epoch(
                        fabric, model, optimizer, scheduler, batches, run.optimizer, watch, signals
                    )
                score = gll(*_predictions(fabric, model, plain_optimizer, spectra)).item()
                epoch = watch.epoch(number, score)
                show(epoch)
                if fabric.is_global_zero:
                    history.add(run_folder, epoch)
                keeper.epoch(number, watch.steps)
                signals.raise_if_asked()
                if number < run.training.epochs and _stopped(fabric, stops, number, score):
                    pruned = number
                    break
        except Interrupted as signal:
            raise Interrupted(signal.signum, keeper.interrupted()) from None
        except RuntimeError:  # a collective that another process, which ended first, has left
            if signals.asked and fabric.world_size > 1:
                raise Interrupted(signals.asked, keeper.interrupted()) from None
            raise
    if fabric.is_global_zero:
        edges = torch.from_numpy(channel_edges(run.data.bins, run.data.channels))
        sigmas = calibration(*_predictions(fabric, model, plain_optimizer, spectra))
        simple = baselines(spectra, edges)
        timing = stopwatch.figures()
        with _averaged(plain_optimizer):
            report.finish(score, sigmas, simple, timing, spectra, edges, model, run_folder, pruned)
    return score


def _lay_out_buckets(fabric: Fabric, model: Any, optimizer: Any, spectra: Spectra) -> None:
    """One backward pass, after which DDP lays its buckets out anew, for good.

    Where more than two processes add, the order depends on a gradient's place in its bucket. So a
    run that is resumed would have other bits, if this happened at its first step.
    """
    inputs, targets = fabric.to_device((spectra.train_inputs[:1], spectra.train_targets[:1]))
    mean, sigma = model(inputs)
    fabric.backward(gll(mean, sigma, targets))
    optimizer.zero_grad()


def _stopped(fabric: Fabric, stops: Stops | None, epoch: int, score: float) -> bool:
    """What the first process is told, in all of them."""
    if stops is None:
        return False
    return bool(fabric.broadcast(fabric.is_global_zero and stops(epoch, score)))


def precision(run: RunConfig) -> str:
    """What `training.precision: auto` comes to: bf16 where device and optimizer allow it."""
    if run.training.precision != "auto":
        return run.training.precision
    cuda = run.training.accelerator in ("auto", "cuda") and torch.cuda.is_available()
    wanted = run.optimizer.precision_safe and run.optimizer.bf16_preferred
    return "bf16" if wanted and cuda and torch.cuda.is_bf16_supported() else "32"


def _batches(fabric: Fabric, run: RunConfig, spectra: Spectra) -> DataLoader[Any]:
    """Shuffled by seed and epoch alone: a resumed epoch sees the same batches.

    So do several processes, which take equal parts of each.
    """
    data = TensorDataset(spectra.train_inputs, spectra.train_targets)
    sampler: DistributedSampler[Any] = DistributedSampler(
        data, fabric.world_size, fabric.global_rank, seed=run.training.seed
    )
    return DataLoader(
        data, batch_size=run.training.batch_size // fabric.world_size, sampler=sampler
    )


def _windows(batches: DataLoader[Any], size: int) -> Iterator[list[Any]]:
    """Batches whose gradients one optimizer step takes together; the last may hold fewer."""
    window = []
    for batch in batches:
        window.append(batch)
        if len(window) == size:
            yield window
            window = []
    if window:
        yield window


def _train_epoch(
    fabric: Fabric,
    model: Any,
    optimizer: Any,
    scheduler: Any,
    batches: DataLoader[Any],
    settings: OptimizerConfig,
    watch: Watch,
    signals: Deferred,
) -> None:
    """One pass over the training part, if no signal ends it."""
    model.train()
    for window in _windows(batches, settings.accumulate_steps):
        loss = _backward(fabric, model, window, settings.detect_anomaly)
        optimizer.step()  # clips
        watch.step(loss)
        optimizer.zero_grad()
        if scheduler is not None:
            scheduler.step()
        signals.raise_if_asked()


def _backward(fabric: Fabric, model: Any, window: list[Any], detect_anomaly: bool) -> Tensor:
    """Adds up the gradients of a window; returns its mean loss."""
    total = torch.zeros((), device=fabric.device)
    for i, batch in enumerate(window):
        inputs, targets = fabric.to_device(tuple(batch))
        with (
            fabric.no_backward_sync(model, enabled=i + 1 < len(window)),
            torch.autograd.set_detect_anomaly(detect_anomaly),
        ):
            mean, sigma = model(inputs)
            loss = gll(mean, sigma, targets) / len(window)
            fabric.backward(loss)
        total += loss.detach()
    return total


def _averaged(optimizer: FusedStep) -> AbstractContextManager[None]:
    """The model with its averaged weights, where `ema_decay` keeps some."""
    averages = any(Options.of(group).ema_decay is not None for group in optimizer.param_groups)
    return optimizer.ema_weights() if averages else nullcontext()


@torch.no_grad()
def _predictions(
    fabric: Fabric, model: Any, optimizer: FusedStep, spectra: Spectra
) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, sigma and target of the validation part, each [n, bins]; by averaged weights."""
    model.eval()
    with _averaged(optimizer):
        mean, sigma = model(fabric.to_device(spectra.validation_inputs))
    return mean, sigma, fabric.to_device(spectra.validation_targets)


def _write_records(run: RunConfig, record: dict[str, Any], run_folder: Path) -> RunError | None:
    """Writes what is switched on; returns what is wrong where that fails."""
    try:
        if run.optimizer.log_config:
            records.export_json(record, run_folder / "optimizer.json")
            if run.optimizer.export_json:
                records.export_json(record, Path(run.optimizer.export_json))
        if run.optimizer.hash_to_debuglog:
            records.append_debug_log(record)
    except OSError as error:
        return RunError(files.reason(error))
    return None


def _warn_of_differences(saved: dict[str, Any], now: dict[str, Any]) -> None:
    """Says which sections of the config are not those of the checkpoint."""
    saved, now = flat(saved), flat(now)
    ignored = ("training.resume", "training.keep", "optimizer.fused", "logger.")  # made to switch
    keys = sorted(k for k in saved.keys() | now.keys() if saved.get(k) != now.get(k))
    keys = [key for key in keys if not key.startswith(ignored)]
    if keys:
        warnings.warn(f"resumed with another {', '.join(keys)} than before.", stacklevel=3)
