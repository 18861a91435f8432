"""One phase, in the process that was started for it.

python -m benchmarks.gpu.phase MODULE RESULT [--played]
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

from benchmarks.gpu.findings import Findings


def main(module: str, result: str, played: bool) -> int:
    """Runs it; 0 where it found no problem."""
    findings = Findings(Path(result))
    if played:
        from benchmarks.gpu.played import PlayedGPU as GPU
    else:
        from benchmarks.gpu.real import RealGPU as GPU  # type: ignore[assignment]
    importlib.import_module(module).run(GPU(), findings)
    for problem in findings.held["problems"]:
        print(problem, file=sys.stderr)
    return 1 if findings.held["problems"] else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:3], played="--played" in sys.argv))
