"""FSDP2 on two processes: a clip by the norm over all shards, and a checkpoint that goes on."""

# Run it: torchrun --nproc-per-node 2 examples/fsdp2.py

import argparse
import os
import shutil
import sys
import tempfile

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from spectramind_fused import FusedAdamW


def sharded(seed: int) -> tuple[nn.Module, FusedAdamW]:
    torch.manual_seed(seed)
    layers = [nn.Linear(32, 256), nn.GELU(), nn.Linear(256, 256), nn.GELU(), nn.Linear(256, 1)]
    model, mesh = nn.Sequential(*layers), init_device_mesh("cpu", (dist.get_world_size(),))
    for layer in layers[::2]:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model, FusedAdamW(model.parameters(), lr=1e-2, clip_grad_norm=0.5, ema_decay=0.9)


def train(model: nn.Module, optimizer: FusedAdamW, steps: range) -> str:
    for step in steps:
        torch.manual_seed(step * dist.get_world_size() + dist.get_rank())
        inputs = torch.randn(64, 32)
        loss = nn.functional.mse_loss(model(inputs), inputs[:, :4].sum(1, keepdim=True))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    loss = loss.detach() / dist.get_world_size()
    dist.all_reduce(loss)
    norm = optimizer.grad_norm
    return f"step {steps.stop}: loss {loss:.6f}, norm of all gradients {norm:.6f}"


def main(steps: int) -> None:
    rank, half = dist.get_rank(), (steps + 1) // 2
    say = print if rank == 0 else lambda *_: None
    folder = [tempfile.mkdtemp() if rank == 0 else None]
    dist.broadcast_object_list(folder)

    model, optimizer = sharded(seed=0)
    held = sum(p.to_local().numel() for p in model.parameters())
    say(f"rank 0 holds {held:,} of {sum(p.numel() for p in model.parameters()):,} parameters")
    say(train(model, optimizer, range(half)))
    weights, state = get_state_dict(model, optimizer)
    dcp.save({"model": weights, "optimizer": state}, checkpoint_id=folder[0])
    say("saved, and gone on to", train(model, optimizer, range(half, steps)))

    model, optimizer = sharded(seed=1)
    weights, state = get_state_dict(model, optimizer)
    dcp.load({"model": weights, "optimizer": state}, checkpoint_id=folder[0])
    set_state_dict(model, optimizer, model_state_dict=weights, optim_state_dict=state)
    say("loaded into others, gone on to", train(model, optimizer, range(half, steps)))
    say("served by", optimizer.backends())
    dist.barrier()
    if rank == 0:
        shutil.rmtree(folder[0])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=100)
    steps = parser.parse_args().steps
    if "RANK" not in os.environ:
        sys.exit("Start it by torchrun: torchrun --nproc-per-node 2 examples/fsdp2.py")
    dist.init_process_group("gloo")
    main(steps)
    dist.destroy_process_group()
