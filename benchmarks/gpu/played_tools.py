"""What stands in for compute-sanitizer and ncu: they run the program and say what those would.

python -m benchmarks.gpu.played_tools compute-sanitizer --tool memcheck ... python -m ...
"""

from __future__ import annotations

import runpy
import subprocess
import sys

from benchmarks.gpu.faults import planted


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
    if planted("sanitizer") and tool == "racecheck":
        print("========= Error: Race reported between Write and Read access in update (planted)")
        print("========= RACECHECK SUMMARY: 1 hazard displayed (1 error, 0 warnings)")
        return int(options[options.index("--error-exitcode") + 1])
    word = "RACECHECK SUMMARY: 0 hazards displayed" if tool == "racecheck" else "ERROR SUMMARY: 0"
    print(f"========= {word} (0 errors, 0 warnings)")
    return 0


def _ncu(options: list[str], command: list[str]) -> int:
    """Runs the program here and prints what its launches moved, as the emulator counted it."""
    from benchmarks.gpu import phase
    from benchmarks.gpu.played import PlayedGPU

    gpu = PlayedGPU()
    if planted("traffic"):
        print("==ERROR== The application was disconnected (planted)")
        return 1
    sys.argv = command[2:]  # python -m MODULE ...
    gpu.free = lambda: None  # which forgets launches
    phase.gpu_of = lambda words: gpu
    runpy.run_module(command[2], run_name="__main__")
    metrics = options[options.index("--metrics") + 1].split(",")
    _row("ID", "Kernel Name", *metrics)
    _row("", "", *("byte" if "bytes" in metric else "" for metric in metrics))
    for i, launch in enumerate(gpu.emulated.launches):
        counted = {
            "dram__bytes_read.sum": launch.traffic.loads,
            "dram__bytes_write.sum": launch.traffic.stores,
        }
        moved = {m: sum(at.size * size for at, size in counted[m]) for m in counted}
        _row(i, launch.name, *(moved.get(metric, "n/a") for metric in metrics))
    return 0


def _row(*cells: object) -> None:
    print(",".join(f'"{cell}"' for cell in cells))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
