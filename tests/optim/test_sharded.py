"""Parameters sharded over two processes: clipped by the norm over both."""

import copy

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from tests.reference import CLASSES, Reference

pytestmark = pytest.mark.skipif(not dist.is_gloo_available(), reason="needs gloo")


def train_sharded(rank, rendezvous, options):
    """Three steps beside a whole model that sees both ranks' data."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2)
    mesh = init_device_mesh("cpu", (2,))
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(7, 33), nn.Tanh(), nn.Linear(33, 3))
    whole = copy.deepcopy(model)
    for layer in model:
        if isinstance(layer, nn.Linear):
            fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    optimizer = CLASSES["AdamW"][0](model.parameters(), lr=0.1, **options)
    reference = Reference("AdamW", list(whole.parameters()), lr=0.1, **options)
    for step in range(3):
        inputs = torch.randn(2, 5, 7)  # the same on both ranks
        model(inputs[rank]).square().mean().backward()
        whole.zero_grad()
        whole(inputs.flatten(0, 1)).square().mean().backward()
        norm = torch.nn.utils.get_total_norm([p.grad for p in whole.parameters()])
        assert norm > options["clip_grad_norm"]
        optimizer.step()
        optimizer.zero_grad()
        reference.step()
        torch.testing.assert_close(optimizer.grad_norm, norm)
        for p, expected in zip(model.parameters(), whole.parameters(), strict=True):
            full = p.full_tensor()
            torch.testing.assert_close(full, expected, rtol=1e-5, atol=1e-5, msg=f"step {step}")
    averages = [optimizer.state[p]["ema_weights"].full_tensor() for p in model.parameters()]
    torch.testing.assert_close(averages, reference.average, rtol=1e-5, atol=1e-5)
    dist.destroy_process_group()


def test_the_norm_is_that_over_all_ranks(tmp_path):
    options = {"clip_grad_norm": 0.05, "lookahead_k": 2, "ema_decay": 0.9}
    mp.spawn(train_sharded, (tmp_path / "rendezvous", options), nprocs=2)
