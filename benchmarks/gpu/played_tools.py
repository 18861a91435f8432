"""What stands in for compute-sanitizer and ncu: they run the program and say what those would.

python -m benchmarks.gpu.played_tools compute-sanitizer --tool memcheck ... python -m ...
"""

from __future__ import annotations

import runpy
import subprocess
import sys

from benchmarks.gpu.played import fault

_UNITS = {"sum": "byte", "pct": "%", "thread": "register/thread", "duration": "nsecond"}


def main(words: list[str]) -> int:
    """Plays the tool that is named first."""
    name, *rest = words
    at = rest.index(sys.executable)
    options, command = rest[:at], rest[at:]
    return _sanitizer(options, command) if name == "compute-sanitizer" else _ncu(options, command)


def _sanitizer(options: list[str], command: list[str]) -> int:
    tool = options[options.index("--tool") + 1]
    print("========= COMPUTE-SANITIZER (played)")
    # The program has run once already, without a tool; one of four runs it again, as a real one.
    if tool == "memcheck":
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    if fault("sanitizer") and tool == "racecheck":
        print("========= Error: Race reported between Write and Read access in update (planted)")
        print("========= RACECHECK SUMMARY: 1 hazard displayed (1 error, 0 warnings)")
        return int(options[options.index("--error-exitcode") + 1])
    word = "RACECHECK SUMMARY: 0 hazards displayed" if tool == "racecheck" else "ERROR SUMMARY: 0"
    print(f"========= {word} (0 errors, 0 warnings)")
    return 0


def _ncu(options: list[str], command: list[str]) -> int:
    """Runs the program here and prints what its launches moved, as the emulator counted it."""
    metrics = options[options.index("--metrics") + 1].split(",")
    sys.argv = [*command[2:]]  # python -m MODULE ...
    from benchmarks.gpu import played

    gpus = []

    class Watched(played.PlayedGPU):
        def __init__(self) -> None:
            super().__init__()
            gpus.append(self)

    played.PlayedGPU = Watched  # type: ignore[misc]
    runpy.run_module(command[2], run_name="__main__", alter_sys=False)
    if fault("traffic"):
        print("==PROF== Disconnected from process (planted)")
        return 1
    print("==PROF== Connected to process (played)")
    print(",".join(f'"{name}"' for name in ("ID", "Kernel Name", *metrics)))
    print(",".join(['""', '""', *(f'"{_unit(metric)}"' for metric in metrics)]))
    for i, launch in enumerate(gpus[0].emulated.launches):
        read = sum(int(at.size) * size for at, size in launch.traffic.loads)
        written = sum(int(at.size) * size for at, size in launch.traffic.stores)
        values = {"dram__bytes_read.sum": read, "dram__bytes_write.sum": written}
        row = [str(values.get(metric, 1)) for metric in metrics]
        print(",".join(f'"{value}"' for value in (str(i), launch.name, *row)))
    return 0


def _unit(metric: str) -> str:
    return next(unit for part, unit in _UNITS.items() if part in metric.split("__")[-1]) \
        if "bytes" not in metric else "byte"  # fmt: skip


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
