"""`bench`: what a user's own shapes would gain."""

from __future__ import annotations

import argparse
import logging
import sys
import warnings
from pathlib import Path

import torch

from spectramind_fused import files
from spectramind_fused.bench.console import console
from spectramind_fused.bench.measure import (
    SAMPLES,
    Comparison,
    compare,
    default_device,
    device_name,
    versions,
)
from spectramind_fused.bench.programs import PROGRAMS
from spectramind_fused.bench.report import is_ours, show, write_rows
from spectramind_fused.bench.workloads import WORKLOADS, Workload, of_file, of_model
from spectramind_fused.optim import OPTIMIZERS

_DTYPES = ("float32", "bfloat16", "float16")


def run(words: list[str]) -> None:
    """Times steps beside those of others and prints tables.

    Args:
        words: what was typed after `bench`.
    """
    given = _parser().parse_args(words)
    try:
        workload = _workload(given)
        device = _device(given.device)
    except ValueError as error:
        print(f"spectramind bench: {error}", file=sys.stderr)
        sys.exit(2)
    warnings.simplefilter("ignore")  # of libraries that are only timed
    logging.disable(logging.WARNING)
    to = console()
    to.say(f"{device_name(device)}; {versions()}")
    for program in given.program or ["step", "tail"]:
        dtype = getattr(torch, given.dtype)
        # No spinner: it would take time from what is timed.
        to.whisper(f"timing {workload.name}: {PROGRAMS[program].title} ...")
        given_to_all = (workload, given.optimizer, dtype, program, device, given.samples)
        result = compare(*given_to_all, compiled=given.compiled)
        show(result, to)
        to.say(_gain(result))
        if given.csv is not None:
            try:
                write_rows(given.csv, result.rows)
            except OSError as error:
                print(f"spectramind bench: {files.reason(error)}", file=sys.stderr)
                sys.exit(1)


def _gain(result: Comparison) -> str:
    """What switching from torch's best would do."""
    ours = min(row.median_ms for row in result.rows if is_ours(row))
    torchs = [row for row in result.rows if row.contender.startswith("torch")]
    if not torchs:
        return ""
    best = min(torchs, key=lambda row: row.median_ms)
    change = best.median_ms - ours
    verb = "gain" if change >= 0 else "lose"
    return (
        f"Beside {best.contender} you would {verb} {abs(change):.2f} ms per step: "
        f"{best.median_ms:.2f} to {ours:.2f} ms."
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="spectramind bench",
        description="Times optimizer steps on your shapes beside torch's and other libraries'.",
        epilog="example: spectramind bench --model my.models:build --optimizer SGD",
    )
    shapes = parser.add_mutually_exclusive_group()
    shapes.add_argument("--model", metavar="MODULE:FUNCTION", help="a function that builds a model")
    shapes.add_argument(
        "--shapes", metavar="FILE", type=Path, help="lines such as 12 * 768 x 3072, # comments"
    )
    shapes.add_argument(
        "--workload", choices=WORKLOADS, default="gpt2", help="one of ours (default: gpt2)"
    )
    parser.add_argument("--optimizer", choices=OPTIMIZERS, default="AdamW", help="default: AdamW")
    parser.add_argument("--dtype", choices=_DTYPES, default="float32", help="default: float32")
    parser.add_argument(
        "--program",
        choices=PROGRAMS,
        action="append",
        help="what is timed, may be repeated: "
        + "; ".join(f"{name}: {program.title}" for name, program in PROGRAMS.items())
        + " (default: step and tail)",
    )
    parser.add_argument("--device", help="cpu, cuda, ...; a GPU by default where there is one")
    parser.add_argument(
        "--samples", type=_positive, default=SAMPLES, help=f"of each (default: {SAMPLES})"
    )
    parser.add_argument(
        "--compiled", action="store_true", help="torch's compiled step too; compiling takes minutes"
    )
    parser.add_argument("--csv", metavar="FILE", type=Path, help="adds the figures to a file")
    return parser


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number above 0")
    return int(text)


def _workload(given: argparse.Namespace) -> Workload:
    if given.model is not None:
        return of_model(given.model)
    if given.shapes is not None:
        return of_file(given.shapes)
    return WORKLOADS[given.workload]


def _device(name: str | None) -> torch.device:
    if name is None:
        return default_device()
    try:
        device = torch.device(name)
        torch.empty((), device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        first = str(error).splitlines()[0]
        raise ValueError(f"--device {name} cannot be used here: {first}") from error
    return device
