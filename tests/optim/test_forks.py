"""A child that is forked after a step steps too, on its own thread, to the same bits."""

import os
import signal

import pytest
import torch

from spectramind_fused import FusedAdamW

pytestmark = [pytest.mark.cpu, pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")]
SIZES = (300_000, 70)  # work for several threads


def in_bytes(params):
    """Without an operator of torch's, which in a child would wait for its parent's threads."""
    return b"".join(p.detach().numpy().tobytes() for p in params)


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("backend", ["auto", "eager"])
@pytest.mark.parametrize("before", [0, 2])
def test_a_forked_child_steps_as_its_parent_does(tmp_path, before, backend):
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    torch.manual_seed(0)
    params = [torch.randn(size).mul(1).requires_grad_() for size in SIZES]  # starts the threads
    optimizer = FusedAdamW(params, lr=0.1, clip_grad_norm=1.0, backend=backend)
    for p in params:
        p.grad = torch.randn_like(p)
    for _ in range(before):
        optimizer.step()
    child = os.fork()
    if child == 0:
        signal.alarm(30)
        optimizer.step()
        (tmp_path / "seen").write_bytes(in_bytes(params))
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert status == 0, "the child waited for threads that it has not"
    optimizer.step()
    assert (tmp_path / "seen").read_bytes() == in_bytes(params)
    torch.set_num_threads(threads)
