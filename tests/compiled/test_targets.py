"""Which GPUs get the same instructions: what runs on one of them need not run on the other."""

import re

import pytest

from tests.emulator import cuda
from tests.emulator.ptx import kernels_of, parse


@pytest.mark.cpu
@pytest.mark.skipif(cuda.missing() is not None, reason="needs nvcc")
def test_nvcc_writes_the_same_instructions_for_sm_80_and_sm_90():
    """So with --emulate 80 the CUDA kernels do not run once more: conftest.py leaves them out."""
    texts = []
    for capability in (80, 90):
        path = cuda.build() / f"step.compute_{capability}.ptx"
        texts.append(re.sub(r"^\.target .*$", "", path.read_text(), flags=re.MULTILINE))
    assert len(parse(next(iter(kernels_of(texts[0]).values()))).code) > 10
    assert texts[0] == texts[1]
