"""Instructions per element of the C++ kernels, counted by callgrind: what a clock cannot hold.

A loop that no longer becomes vectors takes some ten times as many.
"""

import platform
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from spectramind_fused.kernels import cpu

HERE = Path(__file__).parent
ELEMENTS = 65536
FLOAT32, BFLOAT16, FLOAT16 = 0, 2, 3

pytestmark = [
    pytest.mark.skipif(shutil.which("valgrind") is None, reason="needs valgrind"),
    pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++"),
    pytest.mark.skipif(platform.machine() != "x86_64", reason="the bounds are those of AVX2"),
]


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    program = tmp_path_factory.mktemp("driver") / "step_driver"
    source = HERE / "step_driver.cpp"
    subprocess.run(["g++", "-std=c++17", "-O2", source, "-o", program, "-ldl"], check=True)
    return program


def instructions(driver, rule, states, dtype, epilogues):
    """Per element, within the launch."""
    launch = "spectramind_norm" if rule == "norm" else "spectramind_update"
    arguments = [cpu._LIBRARY, rule, states, dtype, ELEMENTS, epilogues]
    run = subprocess.run(
        [
            "valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null",
            f"--toggle-collect={launch}", driver, *map(str, arguments),
        ],
        capture_output=True,
        text=True,
        check=True,
    )  # fmt: skip
    return int(re.search(r"Collected : (\d+)", run.stderr)[1]) / ELEMENTS


# Bounds are a quarter above what GCC 12 made for AVX2, the widest that valgrind knows.
@pytest.mark.parametrize(
    ("rule", "states", "dtype", "epilogues", "seen"),
    [
        ("adam", 2, FLOAT32, 0, 4.6),
        ("adam", 2, FLOAT32, 1, 10.6),  # of which valgrind counts 4 for zeroing, a byte at a time
        ("adam", 3, FLOAT32, 0, 5.4),
        ("adam", 2, BFLOAT16, 0, 10.4),
        ("adam", 2, BFLOAT16, 1, 15.5),
        ("adam", 2, FLOAT16, 0, 7.5),
        ("adam", 2, FLOAT16, 1, 12.7),
        ("sgd", 1, FLOAT32, 0, 2.1),
        ("rmsprop", 1, FLOAT32, 0, 3.7),
        ("centered_rmsprop", 3, FLOAT32, 0, 6.7),
        ("lion", 1, FLOAT32, 0, 2.8),
        ("lion", 1, BFLOAT16, 0, 6.7),
        ("norm", 2, FLOAT32, 0, 1.8),
        ("norm", 2, BFLOAT16, 0, 2.1),
        ("norm", 2, FLOAT16, 0, 2.6),
    ],
)
def test_loops_become_vectors(driver, rule, states, dtype, epilogues, seen):
    assert instructions(driver, rule, states, dtype, epilogues) <= 1.25 * seen
