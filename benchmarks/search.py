"""Searches beside a grid of as many runs, on the default task.

    python -m benchmarks.search [--epochs 8] [--seeds 0 1 2]

The grid is `experiment=optimizer_sweeps/adamw`, 12 runs over lr and weight decay. "same box" draws
as many from the box that the grid spans. "recipe" is `experiment=optimizer_sweeps/search_adamw`
with as many runs: a wider box, and betas and warm-up besides. Nothing is pruned. Prints a table and
writes `benchmarks/search.json`.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import optuna
import torch

from spectramind_fused.version import __version__

HERE = Path(__file__).parent
RUNS = 12
SEARCH = [f"hydra.sweeper.n_trials={RUNS}", "hydra.sweeper.pruner=none"]
SAME_BOX = [
    "-m",
    "hydra/sweeper=search",
    "optimizer=adamw",
    "optimizer.lr=tag(log,interval(3e-4,1e-2))",
    "optimizer.weight_decay=tag(log,interval(0.01,0.5))",
    "hydra.sweeper.tpe.n_startup_trials=4",
    "hydra.sweeper.gp.n_startup_trials=4",
    *SEARCH,
]
RECIPE = ["experiment=optimizer_sweeps/search_adamw", *SEARCH]
SWEEPS = {
    "grid": ["experiment=optimizer_sweeps/adamw"],
    "random, same box": [*SAME_BOX, "hydra.sweeper.sampler=random"],
    "tpe, same box": [*SAME_BOX, "hydra.sweeper.sampler=tpe"],
    "gp, same box": [*SAME_BOX, "hydra.sweeper.sampler=gp"],
    "tpe, recipe": [*RECIPE, "hydra.sweeper.sampler=tpe"],
    "gp, recipe": [*RECIPE, "hydra.sweeper.sampler=gp"],
}


def scores(sweep: str, seed: int, epochs: int) -> list[float]:
    """The val/gll of a sweep's runs, in the order in which they ran."""
    words = [*SWEEPS[sweep], f"training.epochs={epochs}", f"training.seed={seed}"]
    words += [f"hydra.sweeper.seed={seed}"] if sweep != "grid" else []
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "spectramind_fused", "train", *words]
        command += [f"hydra.sweep.dir={folder}/sweep", "training.checkpoint_every=0"]
        environment = {**os.environ, "PYTHONPATH": str(HERE.parent)}
        subprocess.run(command, cwd=folder, env=environment, check=True, stdout=subprocess.DEVNULL)
        with Path(folder, "sweep", "leaderboard.csv").open(newline="") as file:
            runs = sorted(csv.DictReader(file), key=lambda row: int(row["run"]))
    assert len(runs) == RUNS
    return [float(row["val/gll"]) for row in runs]


def table(found: dict) -> str:
    """Markdown: the best val/gll of each sweep, and from which run on it passed the grid's."""
    names = [name for name in SWEEPS if all(name in of for of in found["scores"].values())]
    lines = [f"| seed | {' | '.join(names)} |", f"| --- |{' --- |' * len(names)}"]
    for seed, sweeps in found["scores"].items():
        grid = min(sweeps["grid"]) if "grid" in sweeps else -np.inf
        cells = []
        for name in names:
            best = np.minimum.accumulate(sweeps[name])
            passed = np.flatnonzero(best < grid)
            cells.append(f"{best[-1]:.4f}" + (f" (run {passed[0] + 1})" if passed.size else ""))
        lines.append(f"| {seed} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Runs what is asked for and not yet there."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--sweeps", nargs="+", choices=SWEEPS, default=list(SWEEPS))
    parser.add_argument("--to", type=Path, default=HERE / "search.json")
    parser.add_argument("--anew", action="store_true", help="forget what is there")
    options = parser.parse_args()
    versions = {
        "spectramind_fused": __version__,
        "torch": torch.__version__,
        "optuna": optuna.__version__,
        "python": platform.python_version(),
    }
    found = {"date": datetime.date.today().isoformat(), "versions": versions}
    found |= {"epochs": options.epochs, "scores": {}}
    if options.to.exists() and not options.anew:
        found = json.loads(options.to.read_text())
    for seed in map(str, options.seeds):
        kept = found["scores"].setdefault(seed, {})
        for sweep in options.sweeps:
            if sweep not in kept:
                kept[sweep] = scores(sweep, int(seed), found["epochs"])
                options.to.write_text(json.dumps(found) + "\n")
                print(f"seed {seed}, {sweep}: {min(kept[sweep]):.4f}", flush=True)
    print(table(found))


if __name__ == "__main__":
    main()
