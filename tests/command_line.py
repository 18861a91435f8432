"""`spectramind` as typed, in a process of its own that need not import everything anew.

A server (warm_server.py) has imported torch, Hydra and the rest. For every command line it forks a
process that is given the words, the folder, the environment and the streams of the one who typed.
So a command costs what it does, not 3 seconds of imports. `cold` starts Python itself, where that
is the point.
"""

import atexit
import contextlib
import functools
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ENVIRONMENT = {k: v for k, v in os.environ.items() if not k.startswith(("TRITON_", "PYTEST_"))}
ENVIRONMENT["OMP_NUM_THREADS"] = "1"  # the tests themselves run side by side
COLD = ENVIRONMENT | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
MODULE = [sys.executable, "-m", "spectramind_fused"]
NOTHING = ""  # is preloaded
QUICK = "data=synthetic model.hidden=[16] training.epochs=1 scheduler.warmup_steps=5"


@functools.cache
def _folder(preloaded: str) -> Path:
    """Where the server's `spectramind` lies; started with the first command.

    Another one is started for every library that is preloaded into it.
    """
    pytest.importorskip("hydra")
    folder = Path(tempfile.mkdtemp(prefix="spectramind-"))
    server = subprocess.Popen(
        [sys.executable, str(HERE / "warm_server.py"), str(folder)],
        env=ENVIRONMENT | {"PYTHONPATH": str(HERE.parent), "LD_PRELOAD": preloaded},
        stdin=subprocess.PIPE,  # it ends when this process does
    )
    atexit.register(server.wait)
    atexit.register(server.stdin.close)
    while not (folder / "spectramind").exists():
        assert server.poll() is None, "the server did not start"
        time.sleep(0.05)
    return folder


def shell(line, folder, **more):
    """Runs a line of bash, in which `spectramind` is at hand."""
    path = f"{_folder(NOTHING)}{os.pathsep}{COLD['PATH']}"
    return _run(["bash", "-c", line], folder, COLD | {"PATH": path} | more)


def spectramind(folder, *words, preloaded=NOTHING, **more):
    """Runs one command; `more` goes to its environment. None takes ten minutes."""
    return _run([str(_folder(preloaded) / "spectramind"), *words], folder, COLD | more)


@contextlib.contextmanager
def started(folder, *words):
    """Starts one command, which takes SIGINT and SIGTERM; it ends with the block."""
    command = [str(_folder(NOTHING) / "spectramind"), *words]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=folder, env=COLD, **pipes) as run:
        try:
            yield run
        finally:
            run.terminate()


def cold(folder, *command, **more):
    """Runs a program with nothing imported before."""
    return _run(list(command), folder, {**COLD, **more})


def _run(command, folder, environment):
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False,
        timeout=600,
    )  # fmt: skip


def refused(line, folder):
    """Runs a line that must be refused; returns what it said."""
    run = shell(line, folder)
    assert run.returncode == 2, run.stdout + run.stderr
    assert "Traceback" not in run.stderr
    assert run.stdout == ""
    return run.stderr
