"""Every rule, storage and epilogue between forbidden pages, and with ThreadSanitizer watching.

`make sanitize` takes the first with the kernels under AddressSanitizer; `make soak` takes all
combinations through the kernels as they are installed.
"""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests import draws

HERE = Path(__file__).parent
pytestmark = [
    pytest.mark.cpu,
    pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's mprotect and libtsan"),
]


def child(*command, **environment):
    """What a process prints, which may die; a day is enough for all of `make soak`."""
    return subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=HERE.parents[1],
        timeout=24 * 3600, env={**os.environ, **environment},
    )  # fmt: skip


def guarded(kernels, what):
    library = [] if kernels is None else [str(kernels.resolve())]
    return child(sys.executable, "-m", "tests.sanitizers.guarded", what, *library)


@pytest.mark.random
def test_no_step_leaves_the_memory_that_it_was_given(pytestconfig, record_property):
    run = guarded(pytestconfig.getoption("kernels"), "all" if draws.rounds else "few")
    *last, combinations = run.stdout.splitlines()
    assert run.returncode == 0, f"after {combinations}\n{run.stderr}"
    record_property("summary", f"{combinations} between forbidden pages, each at both ends")
    assert len(last) == int(combinations.split()[0]) > 100


@pytest.mark.parametrize("fault", ["before", "behind"])
def test_a_step_that_leaves_its_memory_is_stopped(pytestconfig, fault):
    run = guarded(pytestconfig.getoption("kernels"), fault)
    assert len(run.stdout.splitlines()) == 1, "it went on"
    assert run.returncode == -signal.SIGSEGV or "AddressSanitizer: SEGV" in run.stderr


def threaded(pytestconfig, folder, share):
    kernels = pytestconfig.getoption("kernels")
    if kernels is None:
        pytest.skip("without --kernels of `make sanitize`")
    compiler, library = os.environ.get("CXX", "g++"), folder / "threads.so"
    subprocess.run(
        [compiler, "-std=c++17", "-O1", "-g", "-fsanitize=thread", "-shared", "-fPIC",
         HERE / "threads.cpp", "-o", library], check=True,
    )  # fmt: skip
    found = child(compiler, "-print-file-name=libtsan.so").stdout.strip()
    return child(
        # It wants its own addresses, which randomized ones may take.
        "setarch", "-R", sys.executable, "-m", "tests.sanitizers.threaded",
        str(kernels.resolve().with_name("_cpu_threads.so")), str(library), share,
        LD_PRELOAD=found, TSAN_OPTIONS="halt_on_error=1 exitcode=66",
    )  # fmt: skip


def test_no_two_threads_of_a_step_touch_the_same(pytestconfig, tmp_path, record_property):
    run = threaded(pytestconfig, tmp_path, "threads_of_its_own")
    assert "ThreadSanitizer" not in run.stderr, run.stderr
    assert run.returncode == 0, run.stderr
    combinations = run.stdout.splitlines()[-1]
    record_property("summary", f"{combinations} in 64 threads under ThreadSanitizer")


def test_threads_that_share_a_chunk_are_reported(pytestconfig, tmp_path):
    run = threaded(pytestconfig, tmp_path, "threads_that_overlap")
    assert run.returncode == 66
    assert "ThreadSanitizer: data race" in run.stderr
    assert "norm_chunks" in run.stderr
