"""`--device cuda`, and the check that who is named has served."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from spectramind_fused import FusedAdamW
from tests import place
from tests.backends import KERNELS

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("backend", KERNELS)
def test_a_backend_that_is_named_and_does_not_serve_is_found(backend):
    param = torch.ones(3, requires_grad=True)
    param.grad = torch.ones(3)
    assert place.unserved(KERNELS) == set()  # nothing has stepped
    FusedAdamW([param], backend=backend).step()
    assert place.served == {backend}
    assert place.unserved([backend, "AdamW"]) == set()
    assert place.unserved(KERNELS) == {*KERNELS} - {backend}


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so():
    """And not that everything was skipped."""
    words = ["-m", "pytest", "--device", "cuda", "-p", "no:cacheprovider", "tests/optim"]
    environment = {**os.environ, "PYTEST_ADDOPTS": ""}
    run = subprocess.run(
        [sys.executable, *words], cwd=ROOT, env=environment, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert run.returncode == 4
    assert "--device cuda: torch finds no GPU it can use here" in run.stderr
