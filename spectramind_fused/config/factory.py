"""Configs in, optimizers and schedulers out."""

from __future__ import annotations

import warnings
from typing import Any

from torch import nn
from torch.optim import lr_scheduler

from spectramind_fused.config.check import ConfigError
from spectramind_fused.config.groups import assign, param_groups
from spectramind_fused.config.hyperparameters import optimizer_class
from spectramind_fused.config.schema import parse_optimizer, read_optimizer, read_scheduler
from spectramind_fused.optim import FusedStep


def build_optimizer(model: nn.Module, config: Any) -> FusedStep:
    """Builds the optimizer that a config describes, for the trainable parameters of a model.

    Args:
        model: its parameters are grouped by `auto_param_groups`.
        config: the root config, its `optimizer` section, or a plain dict of either.

    Returns:
        A fused class for `type`: on the best backend with `fused: true`, on the eager
        backend with `fused: false`. Class, state and checkpoints are the same.

    Raises:
        ConfigError: lists everything wrong with the config.
    """
    parsed = parse_optimizer(config)
    values = dict(parsed.hyperparameters)
    values.setdefault("backend", "auto" if parsed.fused else "eager")
    assignments = assign(model, parsed.groups, parsed.adamw)
    decay = values.get("weight_decay")
    groups = param_groups(assignments, parsed.groups, decay, parsed.adamw)
    if not any(group["params"] for group in groups):
        raise ConfigError(["the model has no trainable parameters"])
    values |= {"lookahead_k": parsed.lookahead_k, "lookahead_alpha": parsed.lookahead_alpha}
    values["clip_grad_norm"] = parsed.clip_grad_norm
    try:
        optimizer = optimizer_class(parsed.type)(groups, **values)
    except (ValueError, RuntimeError, TypeError) as error:  # what only the class can know
        raise ConfigError([f"optimizer: {error}"]) from error
    served = optimizer.backends()
    if parsed.fused and any(line.startswith("torch") for line in served.values()):
        lines = "; ".join(f"{device}: {line}" for device, line in served.items())
        warnings.warn(f"optimizer.fused=true, but no kernels serve {lines}", stacklevel=2)
    return optimizer


def build_scheduler(
    optimizer: FusedStep, config: Any, total_steps: int
) -> lr_scheduler.LRScheduler | None:
    """Builds the learning-rate schedule that a config describes, from torch's schedulers.

    Args:
        optimizer: what `build_optimizer` returned.
        config: the root config, with `scheduler` and `optimizer` sections.
        total_steps: optimizer steps of the run; the scheduler steps once after each.

    Returns:
        The scheduler, or None where `scheduler.name` is none or `optimizer.scheduler_hook`
        is false.

    Raises:
        ConfigError: lists everything wrong with the two sections.
    """
    problems: list[str] = []
    hints, schedule = read_optimizer(config, problems), read_scheduler(config, problems)
    if problems:
        raise ConfigError(problems)
    if schedule.name == "none" or not hints.scheduler_hook:
        return None
    warmup = hints.warmup_steps if schedule.warmup_steps is None else schedule.warmup_steps
    if warmup > total_steps:
        warnings.warn(
            f"scheduler.warmup_steps={warmup} is longer than the run of {total_steps} steps "
            "and was cut to it.",
            stacklevel=2,
        )
        warmup = total_steps
    if schedule.name == "onecycle":
        return _onecycle(optimizer, warmup, total_steps, schedule.min_lr, schedule.cycle_momentum)
    return _cosine(optimizer, warmup, total_steps, schedule.min_lr)


def _cosine(
    optimizer: FusedStep, warmup: int, total_steps: int, min_lr: float
) -> lr_scheduler.LRScheduler:
    """Linear from lr / warmup to lr, then down to `min_lr`, each group from its own lr."""
    decay_steps = max(1, total_steps - warmup)
    if warmup < 2:
        return lr_scheduler.CosineAnnealingLR(optimizer, decay_steps, eta_min=min_lr)
    rise = lr_scheduler.LinearLR(optimizer, start_factor=1 / warmup, total_iters=warmup - 1)
    fall = lr_scheduler.CosineAnnealingLR(optimizer, decay_steps, eta_min=min_lr)
    return lr_scheduler.SequentialLR(optimizer, [rise, fall], milestones=[warmup])


def _onecycle(
    optimizer: FusedStep, warmup: int, total_steps: int, min_lr: float, cycle: bool | None
) -> lr_scheduler.LRScheduler:
    """Torch's one cycle up to each group's lr; without a warm-up torch's 30 % rise.

    Torch divides by the lengths of rise and fall, so neither may be 0: a rise to the end of the run
    falls after it, and one of a single step is a little shorter than that.
    """
    total_steps += warmup == total_steps
    rise = (1 - 1e-9 if warmup == 1 else warmup) / total_steps
    peaks = [group["lr"] for group in optimizer.param_groups]
    has_momentum = all(group.get("momentum", 0) for group in optimizer.param_groups)
    start = peaks[0] / 25  # torch's default div_factor
    try:
        return lr_scheduler.OneCycleLR(
            optimizer,
            max_lr=peaks,
            total_steps=total_steps,
            pct_start=rise if warmup else 0.3,
            cycle_momentum=has_momentum if cycle is None else cycle,
            final_div_factor=start / min_lr if min_lr > 0 else 1e4,
        )
    except ValueError as error:  # nothing to cycle
        raise ConfigError([f"scheduler.cycle_momentum=true: {error}"]) from error
