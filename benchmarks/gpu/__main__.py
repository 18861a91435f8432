"""Proves and measures everything on this machine's GPU, for a bare machine with minutes to spare.

python -m benchmarks.gpu               # at most 10 minutes
python -m benchmarks.gpu --deep        # at most 10 more: compute-sanitizer, a sweep
python -m benchmarks.gpu --only time
python -m benchmarks.gpu --played      # without a GPU, at tiny sizes: no measurement
"""

from __future__ import annotations

import argparse
import sys
from importlib.util import find_spec
from pathlib import Path

from benchmarks.gpu.phases import PHASES, Phase
from benchmarks.gpu.record import Record
from benchmarks.gpu.runner import ROOT, outcome

NEEDED = ("torch", "numpy", "pytest")


def main(words: list[str] | None = None, phases: tuple[Phase, ...] = PHASES) -> int:
    """Runs the phases one after the other; 0 where all passed.

    Args:
        words: as typed.
        phases: to choose from.
    """
    given = _parser(phases).parse_args(words)
    names = given.only or [p.name for p in phases if given.played or p.deep == given.deep]
    if lacking := [name for name in NEEDED if find_spec(name) is None]:
        print(
            f"benchmarks.gpu: {sys.executable} has no {' and no '.join(lacking)}: install what is "
            "missing, or name another Python (make gpu PYTHON=.venv/bin/python).",
            file=sys.stderr,
        )
        return 2
    out = given.out or ROOT / "build" / ("gpu-played.json" if given.played else "gpu.json")
    try:
        record = Record(out, given.played, fresh=not (given.only or given.deep))
    except ValueError as error:
        print(f"benchmarks.gpu: {error}", file=sys.stderr)
        return 2
    if not given.played:
        from benchmarks.gpu.real import missing  # imports torch, which takes a while

        if why := missing():
            print(f"benchmarks.gpu: {why}", file=sys.stderr)
            return 2
    else:
        print("PLAYED: no GPU runs anything here, and no figure is a measurement.")
    bad = []
    for phase in phases:
        if phase.name not in names:
            continue
        print(f"{phase.name}: {phase.what}, at most {phase.limit:g} s ... ", end="", flush=True)
        ended = outcome(phase, given.played)
        record.add(phase.name, ended)
        print(f"{ended['outcome']} after {ended['seconds']:g} s", flush=True)
        if ended["outcome"] != "passed":
            bad.append(phase.name)
            print(*(f"  | {line}" for line in ended["output_tail"].splitlines()[-15:]), sep="\n")
    print(f"{out}: {'these did not pass: ' + ', '.join(bad) if bad else 'all passed'}")
    return 1 if bad else 0


def _parser(phases: tuple[Phase, ...]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--deep", action="store_true", help="the slow phases, added to the file")
    parser.add_argument("--played", action="store_true", help="all but the GPU, at tiny sizes")
    parser.add_argument("--out", metavar="FILE", type=Path, help="default: build/gpu.json")
    parser.add_argument(
        "--only",
        nargs="+",
        metavar="PHASE",
        choices=[phase.name for phase in phases],
        help="of " + ", ".join(phase.name for phase in phases),
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
