"""Folders as runs leave them, made by hand."""

import csv
import json
import math

from spectramind_fused.training.past_runs import PastRun

CALIBRATED = {"within 1 sigma": 0.7, "within 2 sigma": 0.95, "rms of error / sigma": 1.1}


def leave(
    folder, overrides=(), scores=(1.0, -1.0, -2.0), config=None, ended=True, ms=2.0, device="cpu"
):
    """A run's folder.

    Args:
        folder: its own.
        overrides: as typed, such as optimizer.lr=1e-3.
        scores: val/gll by epoch.
        config: beside what the overrides say.
        ended: whether it has a result.
        ms: of a step.
        device: where it ran.
    """
    (folder / ".hydra").mkdir(parents=True)
    (folder / ".hydra" / "overrides.yaml").write_text(json.dumps(list(overrides)))
    tree = {"training": {"epochs": 3}, "data": {"name": "synthetic"}, "optimizer": {"lr": 3e-4}}
    (folder / ".hydra" / "config.yaml").write_text(json.dumps(tree | (config or {})))
    record = {"class": "FusedAdamW", "backend": {"cpu": "cpu"}, "config_hash": "ab" * 32}
    (folder / "optimizer.json").write_text(json.dumps(record))
    with (folder / "history.csv").open("w", newline="") as file:
        csv.writer(file).writerows(
            [("epoch", "train/gll", "val/gll"), *((i, 0, s) for i, s in enumerate(scores, 1))]
        )
    if ended:
        lost = {"within 1 sigma": 0.0, "within 2 sigma": 0.0, "rms of error / sigma": math.nan}
        result = {
            "val/gll": scores[-1],
            "calibration": CALIBRATED if math.isfinite(scores[-1]) else lost,
            "timing": {"ms per step": ms, "device": device},
        }
        (folder / "result.json").write_text(json.dumps(result))
    return PastRun(folder)
