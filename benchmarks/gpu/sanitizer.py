"""Phase: the four tools of compute-sanitizer over every kernel variant at small sizes."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.gpu.findings import Findings
from benchmarks.gpu.phase import main
from benchmarks.gpu.runner import ROOT

TOOLS = ("memcheck", "racecheck", "initcheck", "synccheck")
_FOUND = 9  # the exit code that the tools are told to end with when they found something


def run(gpu: Any, findings: Findings) -> None:
    """Runs the program alone, which compiles, then the tools side by side."""
    tool = gpu.tool("compute-sanitizer")
    if tool is None:
        findings.set(absent="compute-sanitizer was not found on PATH or beside CUDA")
        return
    program = [sys.executable, *gpu.program("benchmarks.gpu.variants")]
    alone = subprocess.run(program, cwd=ROOT, capture_output=True, text=True, check=False)
    findings.set(variants=len(alone.stdout.splitlines()))
    if alone.returncode:
        findings.problem(f"without any tool: {alone.stderr[-2000:]}")
        return
    with tempfile.TemporaryDirectory() as folder:
        logs = {name: Path(folder, name) for name in TOOLS}
        running = {name: _start([*tool, *options(name), *program], logs[name]) for name in TOOLS}
        while running:
            for name in [name for name, process in running.items() if process.poll() is not None]:
                code = running.pop(name).returncode
                found = read(logs[name].read_text(errors="replace"))
                findings.set(**{name: {**found, "exit_code": code}})
                if code or found["summary"] is None:
                    findings.problem(f"{name}: {found['summary']}: {found['first']}")
            time.sleep(0.1)


def options(tool: str) -> list[str]:
    """How a tool is asked."""
    return ["--tool", tool, "--error-exitcode", str(_FOUND), "--print-limit", "20"]


def _start(command: list[str], log: Path) -> Any:
    # From torch's cache an access past the end of a tensor would fall into the next one.
    environment = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    with log.open("w") as output:
        return subprocess.Popen(
            command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT, env=environment
        )


def read(said: str) -> dict[str, Any]:
    """The summary of a tool, and the first lines of what it found."""
    lines = [line for line in said.splitlines() if line.startswith("=========")]
    summaries = [line for line in lines if re.search(r"\bSUMMARY: ", line)]
    found = [line for line in lines if line not in summaries and line.strip("= ")]
    return {
        "summary": summaries[-1].strip("= ") if summaries else None,
        "first": [line.strip("= ") for line in found[:30]],
    }


if __name__ == "__main__":
    main(run)
