"""Runs a phase in a process of its own, for as long as it may, and says what became of it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.gpu.phases import Phase

ROOT = Path(__file__).parents[2]
_TAIL = 6000  # characters of the output of a phase that did not pass


def outcome(phase: Phase, played: bool) -> dict[str, Any]:
    """Runs a phase to its end or its limit.

    Returns:
        Its outcome ("passed", "failed" or "timed out"), what it found until then, and the tail of
        its output unless it passed.
    """
    with tempfile.TemporaryDirectory() as folder:
        result, log = Path(folder, "result.json"), Path(folder, "output")
        words = ["-m", phase.module, str(result)]
        words += ["--played"] if played else []
        since = time.monotonic()
        with log.open("w") as output:
            process = subprocess.Popen(
                [sys.executable, *words], cwd=ROOT, stdout=output, stderr=subprocess.STDOUT,
                env=environment(), start_new_session=True,
            )  # fmt: skip
            try:
                code = process.wait(phase.limit)
                became = "failed" if code else "passed"
            except subprocess.TimeoutExpired:
                became, code = "timed out", None
            finally:
                _end(process)
        found = json.loads(result.read_text()) if result.exists() else {}
        said = log.read_text(errors="replace")
        return {
            "outcome": became,
            "seconds": round(time.monotonic() - since, 1),
            "limit_seconds": phase.limit,
            "exit_code": code,
            "output_tail": "" if became == "passed" else said[-_TAIL:],
            "found": found,
        }


def environment() -> dict[str, str]:
    """For the processes of a phase: they import from the sources, and Triton compiles."""
    kept = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH", ""))))
    triton = os.environ.get("TRITON_CACHE_DIR", str(ROOT / "build" / "triton"))
    return kept | {"PYTHONPATH": path, "TRITON_CACHE_DIR": triton}


def _end(process: subprocess.Popen[Any]) -> None:
    """The process and all that it started, which share its session."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
