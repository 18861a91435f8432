"""What a config comes to, without data and without a run."""

from __future__ import annotations

from typing import Any

import torch

from spectramind_fused.config import build_optimizer, records
from spectramind_fused.training import report
from spectramind_fused.training.model import SpectrumMLP
from spectramind_fused.training.settings import parse_run


def preview(config: Any) -> None:
    """Builds model and optimizer on the device the run would choose, and prints the tables.

    Raises:
        ConfigError: the optimizer cannot be built.
    """
    run = parse_run(config)
    on_cpu = run.training.accelerator == "cpu" or not torch.cuda.is_available()
    model = SpectrumMLP(run.data.channels, run.data.bins, run.training.hidden)
    model.to("cpu" if on_cpu else "cuda")
    optimizer = build_optimizer(model, config)
    record = records.describe(config, run.optimizer, optimizer, model)
    report.tables(run, record)
