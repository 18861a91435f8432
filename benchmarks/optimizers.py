"""Optimizers beside each other at equal steps, each at the learning rate that suits it.

    python -m benchmarks.optimizers [--seeds 3] [--steps 600]

trains the tasks of `benchmarks.learning`, the byte-level language model and the spectra's network:
first one run for each of a few learning rates, and on by factors of two while the outermost one is
the best; then several seeds at the best one. Writes `benchmarks/optimizers.json`; `table` makes of
it what docs/muon.md shows.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.learning import (
    Way,
    device,
    language_model,
    score_with_spread,
    spectra,
    standard_library,
    versions,
)
from spectramind_fused.config import build_optimizer

FIGURES = Path(__file__).with_name("optimizers.json")
DOC = Path(__file__).parents[1] / "docs" / "muon.md"
ADAMW = {"lr": 4e-3, "betas": [0.9, 0.999], "weight_decay": 0.1}

# Of each optimizer its section of a config, and the learning rates that are tried.
CONTENDERS: dict[str, tuple[dict[str, Any], tuple[float, ...]]] = {
    "AdamW": ({"type": "AdamW", **ADAMW}, (4e-3, 8e-3, 1.6e-2)),
    "Lion": (
        {"type": "Lion", "betas": [0.9, 0.99], "weight_decay": 0.3},
        (4e-4, 8e-4, 1.6e-3),
    ),
    "Adafactor": ({"type": "Adafactor", "weight_decay": 0.0}, (2e-2, 4e-2, 8e-2)),
    "Muon": (
        {"type": "Muon", "weight_decay": 0.1, "adamw": ADAMW},
        (1e-2, 2e-2, 4e-2),
    ),
    "Muon, Polar Express": (
        {"type": "Muon", "weight_decay": 0.1, "adamw": ADAMW, "ns_coefficients": "polar_express"},
        (1e-2, 2e-2, 4e-2),
    ),
}


def way(name: str, lr: float) -> Way:
    """An optimizer at a learning rate, built as a config builds it."""
    section = {**CONTENDERS[name][0], "name": name, "lr": lr, "fused": True}

    def make(model: nn.Module) -> torch.optim.Optimizer:
        # An embedding is named for what it holds here: `places`.
        if section["type"] == "Muon":
            section["adamw"] = {**section["adamw"], "patterns": ["head"]}
        section["auto_param_groups"] = {"enabled": section["type"] != "Adafactor"}
        return build_optimizer(model, section)

    return Way(name, torch.float32, make)


def run(seeds: int, steps: int) -> dict[str, Any]:
    """Everything that the table shows."""
    text = standard_library()
    tasks: dict[str, Callable[[Way, int], dict[str, Any]]] = {
        "text": lambda of, seed: language_model(of, seed, steps, None, text),
        "spectra": lambda of, seed: spectra(of, seed, steps, None),
    }
    found: dict[str, Any] = {
        "date": date.today().isoformat(), "device": device(), "versions": versions(),
        "steps": steps, "seeds": seeds, "optimizers": {},
    }  # fmt: skip
    for name, (_, rates) in CONTENDERS.items():
        found["optimizers"][name] = {}
        for task, train in tasks.items():
            begun = time.perf_counter()
            score = partial(score_of, train, name)
            tried, best = best_rate(rates, score)
            scores = [tried[best]] + [score(best, seed) for seed in range(1, seeds)]
            found["optimizers"][name][task] = {"tried": tried, "lr": best, "scores": scores}
            took = time.perf_counter() - begun
            print(f"{name}, {task}: {tried}, {scores} ({took:.0f} s)", flush=True)
    return found


def score_of(
    train: Callable[[Way, int], dict[str, Any]], name: str, lr: float, seed: int = 0
) -> float:
    """Of one run."""
    score: float = train(way(name, lr), seed)["score"]
    return score


def best_rate(
    rates: tuple[float, ...], score: Callable[[float], float]
) -> tuple[dict[float, float], float]:
    """What was tried, and the best of it, which is not the outermost."""
    tried = {lr: score(lr) for lr in rates}
    while True:
        best = min(tried, key=lambda lr: tried[lr])
        if min(tried) < best < max(tried):
            return tried, best
        outer = best / 2 if best == min(tried) else best * 2
        tried[outer] = score(outer)


def table(figures: dict[str, Any]) -> str:
    """A row for each optimizer: the score of each task, and the learning rate it was reached at."""
    lines = ["| | text | at lr | spectra | at lr |", "| --- | --- | --- | --- | --- |"]
    for name, of_tasks in figures["optimizers"].items():
        tasks = (of_tasks["text"], of_tasks["spectra"])
        cells = [f"{score_with_spread(of['scores'])} | {of['lr']:g}" for of in tasks]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Trains, then writes the figures and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seeds", type=int, default=3, help="at the best rate; default: 3")
    parser.add_argument("--steps", type=int, default=600, help="of each run; default: 600")
    given = parser.parse_args()
    figures = run(given.seeds, given.steps)
    FIGURES.write_text(json.dumps(figures, indent=1) + "\n")
    print(table(figures))


if __name__ == "__main__":
    main()
