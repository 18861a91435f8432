"""`compare`: runs beside the first of them."""

from __future__ import annotations

import argparse
import sys
import warnings
from datetime import datetime
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from spectramind_fused import files
from spectramind_fused.training import compare


def run(words: list[str]) -> None:
    """Tables and draws runs that have ended.

    Args:
        words: what was typed after `compare`.
    """
    given = _parser().parse_args(words)
    out = given.out or Path(f"outputs/compare/{datetime.now():%Y-%m-%d/%H-%M-%S-%f}")
    try:
        runs = compare.gathered(given.runs)
        if reason := compare.problem_with(out):
            raise ValueError(f"--out: {reason}.")
        written = compare.write(runs, out)
    except ValueError as error:
        print(f"spectramind compare: {error}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        print(f"spectramind compare: {files.reason(error)}", file=sys.stderr)
        sys.exit(1)
    compare.warn(runs)
    console = Console(soft_wrap=True, highlight=False)
    console.width = max(console.width, 120)
    compare.show(runs, console)
    if "compare.png" not in written:
        warnings.warn(
            "no picture without matplotlib: pip install 'spectramind-fused[train]'.", stacklevel=1
        )
    console.print(f"in        {escape(str(out.absolute()))}: {', '.join(written)}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="spectramind compare",
        description="Tables and draws runs beside the first one: convergence, val/gll, "
        "calibration, time per step, and what their configs differ in.",
        epilog="example: spectramind compare outputs/train/DATE/TIME outputs/multirun/DATE/TIME",
    )
    parser.add_argument(
        "runs", metavar="RUN", nargs="+", type=Path,
        help="the folder of a run, or of a sweep, which stands for all of its runs",
    )  # fmt: skip
    parser.add_argument(
        "--out", metavar="DIR", type=Path,
        help="where compare.csv, .md and .png go (default: outputs/compare/DATE/TIME)",
    )  # fmt: skip
    return parser
