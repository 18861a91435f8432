"""Phase: the tests, on the GPU, in several processes; every test counts as soon as it has ended."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from benchmarks.gpu.findings import Findings
from benchmarks.gpu.phase import main
from benchmarks.gpu.runner import ROOT

_SHOWN = 40  # failures in full
_BACKENDS = ("triton", "cuda")


def run(gpu: Any, findings: Findings) -> None:
    """Runs all shares side by side, and reads their lines while they run."""
    shares = gpu.pick(max(1, min(12, (os.cpu_count() or 1) * 3 // 4)), 1)
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder, f"{i}.lines") for i in range(shares)]
        logs = [Path(folder, f"{i}.log") for i in range(shares)]
        processes = [
            _pytest(gpu, files[i], f"{i}/{shares}", logs[i], Path(folder)) for i in range(shares)
        ]
        while any(process.poll() is None for process in processes):
            findings.set(**summary(files))
            time.sleep(gpu.pick(2.0, 0.2))
        found = summary(files)
        findings.set(**found)
        for process, log in zip(processes, logs, strict=True):
            if process.returncode not in (0, 1):  # 1: tests failed, which the lines say
                end = log.read_text(errors="replace")[-2000:]
                findings.problem(f"pytest ended with {process.returncode}: {end}")
    if found["counts"].get("failed"):
        findings.problem(f"{found['counts']['failed']} tests failed, see 'failures'")
    for backend in gpu.backends():
        if not found["passed_on"].get(backend):
            findings.problem(f"no test of {backend} has passed: {found['skipped_because']}")


def _pytest(gpu: Any, lines: Path, share: str, log: Path, folder: Path) -> Any:
    words = ["-m", "pytest", "-p", "benchmarks.gpu.pytest_lines", "--lines", str(lines)]
    words += ["--share", share, "-q", "--tb=short", "-p", "no:cacheprovider"]
    words += ["--continue-on-collection-errors"]  # one file that does not import is one failure
    # Warnings of a torch or a driver that we have not seen are no failures of ours.
    words += ["-W", "default", "--basetemp", str(folder / f"tmp{share[0]}"), *gpu.of_pytest()]
    with log.open("w") as output:
        return subprocess.Popen(
            [sys.executable, *words], cwd=ROOT, stdout=output, stderr=subprocess.STDOUT
        )


def summary(files: list[Path]) -> dict[str, Any]:
    """What the lines say so far.

    Args:
        files: of lines, one for each share; those that are not there yet hold none.
    """
    counts: Counter[str] = Counter()
    passed_on: Counter[str] = Counter()
    because: Counter[str] = Counter()
    failures, running = [], []
    for file in files:
        begun = None
        for line in map(json.loads, _whole_lines(file)):
            if line["outcome"] == "begun":
                begun = line["test"]
                continue
            begun = None
            counts[line["outcome"]] += 1
            if line["outcome"] == "passed":
                passed_on.update(b for b in _BACKENDS if b in _parameters(line["test"]))
            elif line["outcome"] == "skipped":
                because[line["said"]] += 1
            else:
                failures.append({"test": line["test"], "said": line["said"]})
        running += [begun] if begun else []
    return {
        "counts": dict(counts),
        "passed_on": dict(passed_on),
        "skipped_because": dict(because.most_common()),
        "failures": failures[:_SHOWN],
        "more_failures": [failure["test"] for failure in failures[_SHOWN:]],
        "running": running,  # where it hung, if it was ended at its limit
    }


def _whole_lines(file: Path) -> list[str]:
    text = file.read_text() if file.exists() else ""
    return text[: text.rfind("\n") + 1].splitlines()


def _parameters(test: str) -> list[str]:
    return re.findall(r"\w+", test.partition("[")[2])


if __name__ == "__main__":
    main(run)
