"""With torch, Triton, numpy and nothing else the package imports, steps and is timed."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
ABSENT = ("hydra", "omegaconf", "rich", "yaml", "lightning", "lightning_fabric", "chemotools",
          "pytorch_lightning", "matplotlib", "filelock", "hypothesis", "pytest")  # fmt: skip
PROGRAM = f"""\
import importlib, pkgutil, sys

sys.modules |= dict.fromkeys({ABSENT})  # an import of one fails, as where it is not installed
import torch
import spectramind_fused
for room in ("multi_tensor", "kernels", "stepping", "optim", "bench"):
    package = importlib.import_module(f"spectramind_fused.{{room}}")
    for module in pkgutil.iter_modules(package.__path__, package.__name__ + "."):
        if not module.name.rpartition(".")[2].startswith("_"):  # those are libraries of C++
            importlib.import_module(module.name)
import benchmarks.readme, benchmarks.gpu.build

param = torch.ones(3, requires_grad=True)
param.grad = torch.ones(3)
optimizer = spectramind_fused.FusedAdamW([param], clip_grad_norm=1.0)
optimizer.step()
assert param[0] < 1 and optimizer.grad_norm > 1.7

from spectramind_fused.cli import main
main(sys.argv[1:])
"""


def test_it_imports_steps_and_is_timed_without_what_training_needs(tmp_path):
    (tmp_path / "shapes").write_text("2 * 3 x 5\n")
    words = ["bench", "--shapes", "shapes", "--samples", "1", "--program", "step"]
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM, *words], cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert "shapes: 2 tensors, 0.0 M parameters\nAdamW, float32: update\nstep of" in run.stdout
    assert "torch, foreach" in run.stdout
    assert "you would" in run.stdout
