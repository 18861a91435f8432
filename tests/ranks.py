"""Several processes over gloo, and a small model that they split or share."""

import gc

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Shard

TAIL = {"clip_grad_norm": 0.05, "lookahead_k": 2, "ema_decay": 0.9}


def on_ranks(count, function, folder, *arguments):
    """Runs `function(rank, ...)` in `count` processes that form a gloo group."""
    rendezvous = folder / f"rendezvous of {function.__name__} {count}"
    mp.spawn(_ranked, (count, rendezvous, function, *arguments), nprocs=count)


def _ranked(rank, count, rendezvous, function, *arguments):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=count)
    function(rank, *arguments)
    gc.collect()  # a group that a cycle keeps until the interpreter ends aborts it
    dist.destroy_process_group()


def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 33), nn.Tanh(), nn.Linear(33, 4), nn.Tanh(), nn.Linear(4, 1))


def sharded(mesh, dim=0):
    """A model whose every layer is split over the ranks; some have nothing of some tensors."""

    def placement(param):
        even = param.dim() > dim and param.shape[dim] % mesh.size() == 0  # or FSDP refuses
        return Shard(dim if even else 0)

    split = model()
    for layer in split:
        if isinstance(layer, nn.Linear):
            fully_shard(layer, mesh=mesh, shard_placement_fn=placement)
    return fully_shard(split, mesh=mesh)


def inputs_of(step):
    return torch.randn(6, 8, generator=torch.Generator().manual_seed(step))


def backward(network, inputs):
    network.zero_grad()
    network(inputs).square().mean().backward()


def assert_same(params, expected, what):
    for p, e in zip(params, expected, strict=True):
        p = p.full_tensor() if isinstance(p, DTensor) else p
        torch.testing.assert_close(p, e, rtol=1e-5, atol=1e-5, msg=what)
