"""What runs a phase, in the process that was started for it.

python -m benchmarks.gpu.device RESULT [--played]
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.gpu.findings import Findings


def gpu_of(words: list[str]) -> Any:
    """The GPU of this machine, or the played one where `--played` was typed."""
    if "--played" in words:
        from benchmarks.gpu.played import PlayedGPU

        return PlayedGPU()
    from benchmarks.gpu.real import RealGPU

    return RealGPU()


def main(run: Callable[[Any, Findings], None]) -> None:
    """Runs a phase and ends the process; 0 where it found no problem."""
    findings = Findings(Path(sys.argv[1]))
    run(gpu_of(sys.argv), findings)
    for problem in findings.held["problems"]:
        print(problem, file=sys.stderr)
    sys.exit(1 if findings.held["problems"] else 0)
