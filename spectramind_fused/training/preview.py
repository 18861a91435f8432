"""What a config comes to, without data and without a run."""

from __future__ import annotations

from typing import Any

import torch

from spectramind_fused.config import build_optimizer, records
from spectramind_fused.optim import FusedStep
from spectramind_fused.training import report
from spectramind_fused.training.model import SpectrumMLP
from spectramind_fused.training.settings import parse_run


def show(config: Any) -> None:
    """Prints the tables of a config.

    Raises:
        ConfigError: see `built`.
    """
    run = parse_run(config)
    model, optimizer = built(config)
    report.tables(run, records.describe(config, run.optimizer, optimizer, model))


def built(config: Any) -> tuple[SpectrumMLP, FusedStep]:
    """Model and optimizer on the device the run would choose.

    Raises:
        ConfigError: the config is wrong, or the optimizer cannot be built for this model here.
    """
    run = parse_run(config)
    on_cpu = run.training.accelerator == "cpu" or not torch.cuda.is_available()
    model = SpectrumMLP(run.data.channels, run.data.bins, run.training.hidden)
    model.to("cpu" if on_cpu else "cuda", run.training.parameter_dtype)
    return model, build_optimizer(model, config)
