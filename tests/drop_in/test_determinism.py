"""The same bits: in every run, on any number of threads, in chunks of any size."""

import subprocess
import sys

import pytest
import torch

from spectramind_fused.kernels import cpu, triton
from tests.asserts import assert_equal
from tests.inputs import clones, give, make_grads, make_params
from tests.oracle import CLASSES, VARIANTS, name_of

TAIL = {"clip_grad_norm": 1.0, "lookahead_k": 2, "ema_decay": 0.9}
SHAPES = [(), (0,), (17,), (8193,), (100003,), (40, 1000), *[(300,)] * 20]


def trained(variant, backend, params, grads):
    """Parameters, states and the norm after four steps; the gradients of the odd ones are large."""
    kind, options = variant
    twins = clones(params)
    optimizer = CLASSES[kind][0](twins, backend=backend, **{**options, **TAIL})
    for step in range(4):
        give([g * (1 + 100 * (step % 2)) for g in grads], twins)
        optimizer.step()
    held = [v for p in twins for v in optimizer.state[p].values()]
    return [*twins, *held, optimizer._grad_norm]


@pytest.mark.cpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("variant", VARIANTS, ids=name_of)
def test_threads_do_not_matter(variant, dtype):
    params = make_params(SHAPES, dtype)
    grads = make_grads(params)
    runs = []
    try:
        for threads in (1, 2, 3, 8):
            torch.set_num_threads(threads)
            runs.append(trained(variant, "cpu", params, grads))
    finally:
        torch.set_num_threads(2)
    for run in runs[1:]:
        assert_equal(run, runs[0])


@pytest.mark.cpu
@pytest.mark.parametrize("variant", VARIANTS, ids=name_of)
def test_the_size_of_a_chunk_does_not_matter_to_the_cpu(variant, monkeypatch):
    params = make_params(SHAPES)
    grads = make_grads(params)
    expected = trained(variant, "cpu", params, grads)
    for chunk in (1024, 3000, 65536):
        monkeypatch.setattr(cpu, "_CHUNK", chunk)
        assert_equal(trained(variant, "cpu", params, grads), expected)


@pytest.mark.parametrize(("kind", "options"), [("AdamW", {}), ("SGD", {"momentum": 0.9})])
def test_the_size_of_a_chunk_does_not_matter_to_triton(kind, options, monkeypatch):
    params = make_params(SHAPES)
    grads = make_grads(params)
    expected = trained((kind, options), "triton", params, grads)
    assert_equal(trained((kind, options), "triton", params, grads), expected)
    try:
        for chunk in (2048, 32768):
            monkeypatch.setattr(triton, "CHUNK", chunk)
            triton.update_constants.cache_clear()
            assert_equal(trained((kind, options), "triton", params, grads), expected)
    finally:
        triton.update_constants.cache_clear()


RUN = """
import torch
from tests.drop_in.test_determinism import SHAPES, TAIL, trained
from tests.inputs import make_grads, make_params
from tests.oracle import VARIANTS
import hashlib
torch.manual_seed(3)
params = make_params(SHAPES)
grads = make_grads(params)
digest = hashlib.sha256()
for variant in VARIANTS:
    for tensor in trained(variant, "cpu", params, grads):
        digest.update(tensor.detach().contiguous().numpy().tobytes())
print(digest.hexdigest())
"""


def test_two_runs_are_bit_identical():
    """In processes of their own, whose memory lies elsewhere."""
    command = [sys.executable, "-W", "ignore", "-c", RUN]
    runs = [subprocess.run(command, capture_output=True, text=True, check=True) for _ in range(2)]
    assert runs[0].stdout == runs[1].stdout
    assert len(runs[0].stdout) == 65
