"""That the sanitizers look: a step that is made to trust a stale address is stopped."""

import subprocess
import sys

import pytest

STALE = """
import sys
from pathlib import Path
import torch
from spectramind_fused import FusedAdamW
from spectramind_fused.kernels import cpu
from spectramind_fused.kernels.host import FITS, Facts

cpu._LIBRARY = Path(sys.argv[1])
param = torch.ones(5000, requires_grad=True)
param.grad = torch.ones(5000)
optimizer = FusedAdamW([param], backend="cpu")
optimizer.step()
print("one step", flush=True)
Facts.compare = lambda *_: FITS
optimizer.state[param]["exp_avg"].data = torch.ones(5000)
optimizer.step()
print("two steps")
"""


def test_a_stale_address_is_stopped_by_the_sanitizer(pytestconfig):
    kernels = pytestconfig.getoption("kernels")
    if kernels is None:
        pytest.skip("without --kernels of `make sanitize`")
    run = subprocess.run(
        [sys.executable, "-c", STALE, str(kernels.resolve())],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.stdout == "one step\n"
    assert "AddressSanitizer: heap-use-after-free" in run.stderr
    assert "update_block" in run.stderr
