"""Instructions of a whole step, of Python's and torch's too, counted by callgrind.

Calls and allocations (`test_counts.py`) do not show what C does for each tensor; a clock is too
noisy to.
"""

import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
FEW, MANY = 100, 600

STEPS = """
import ctypes, sys
import torch
from spectramind_fused import FusedAdamW

counting = ctypes.CDLL(sys.argv[1])
torch.set_num_threads(1)
tail = {"lookahead_k": 3, "ema_decay": 0.99, "clip_grad_norm": 1.0, "zero_grads": True}


def counted(make, tensors, backward=False, **options):
    params = [torch.ones(8, requires_grad=True) for _ in range(tensors)]
    optimizer = make(params, **options)
    for _ in range(4):
        for p in params:
            if backward or p.grad is None:
                p.grad = None
                torch.autograd.backward((p * 2).sum())
        counting.begin()
        optimizer.step()
        counting.end()


for tensors in (int(sys.argv[2]), int(sys.argv[3])):
    counted(FusedAdamW, tensors)
    counted(FusedAdamW, tensors, backward=True)
    counted(FusedAdamW, tensors, **tail)
    counted(torch.optim.AdamW, tensors, fused=True)
"""


@pytest.mark.full
@pytest.mark.skipif(
    shutil.which("valgrind") is None or not Path("/usr/include/valgrind/callgrind.h").exists(),
    reason="needs valgrind with its headers",
)
@pytest.mark.skipif(shutil.which("gcc") is None, reason="needs gcc")
@pytest.mark.skipif(platform.machine() != "x86_64", reason="the bounds are those of x86")
def test_a_step_takes_few_instructions_for_each_tensor(tmp_path):
    """Bounds are a quarter above what was seen with Python 3.11 and torch 2.13."""
    library, counts = tmp_path / "counting.so", tmp_path / "counts"
    subprocess.run(
        ["gcc", "-O2", "-shared", "-fPIC", HERE / "counting.c", "-o", library], check=True
    )
    run = subprocess.run(
        [
            "valgrind", "--tool=callgrind", "--instr-atstart=no", f"--callgrind-out-file={counts}",
            sys.executable, "-c", STEPS, library, str(FEW), str(MANY),
        ],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    dumps = sorted(tmp_path.glob("counts.*"), key=lambda dump: int(dump.suffix[1:]))
    totals = [int(re.search(r"^totals: (\d+)", dump.read_text(), re.M)[1]) for dump in dumps]
    few, many = totals[3:16:4], totals[19:32:4]  # the last of four steps, which is settled
    alone, after_backward, tail, torchs = (
        (of_many - of_few) / (MANY - FEW) for of_few, of_many in zip(few, many, strict=True)
    )
    assert alone <= 1.25 * 1840
    assert after_backward <= 1.25 * 1840
    assert tail <= 1.25 * 3260
    assert alone < 0.1 * torchs
    assert few[0] <= 1.25 * 486_000
