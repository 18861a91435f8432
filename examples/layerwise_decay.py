"""Layer-wise lr decay in 52 parameter groups, which the optimizer steps in one set of launches."""

# Run it: python examples/layerwise_decay.py

import argparse
import time

import torch
from torch import Tensor, nn

from spectramind_fused import FusedAdamW

BLOCKS, WIDTH, LR, LAYER_DECAY = 24, 64, 3e-3, 0.9


class Residual(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        return x + super().forward(x)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    blocks = [
        Residual(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH), nn.GELU(), nn.Linear(WIDTH, WIDTH))
        for _ in range(BLOCKS)
    ]
    return nn.Sequential(nn.Linear(8, WIDTH), *blocks, nn.Linear(WIDTH, 1))


def decayed(model: nn.Sequential) -> list[dict]:
    groups = []
    for depth, layer in enumerate(reversed(model)):
        lr = LR * LAYER_DECAY**depth
        matrices = [p for p in layer.parameters() if p.dim() > 1]
        vectors = [p for p in layer.parameters() if p.dim() == 1]
        groups.append({"params": matrices, "lr": lr, "weight_decay": 0.1})
        groups.append({"params": vectors, "lr": lr, "weight_decay": 0.0})
    return groups


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> str:
    torch.manual_seed(1)
    times = []
    for _ in range(steps):
        inputs = torch.randn(64, 8)
        loss = nn.functional.mse_loss(model(inputs), inputs[:, :2].sum(1, keepdim=True).sin())
        optimizer.zero_grad()
        loss.backward()
        begun = time.perf_counter()
        optimizer.step()
        times.append(time.perf_counter() - begun)
    return f"loss {loss:.4f}, shortest step {1e3 * min(times):.2f} ms"


def main(steps: int) -> None:
    model = network()
    optimizer = FusedAdamW(decayed(model), lr=LR)
    print(f"FusedAdamW, {len(optimizer.param_groups)} groups:", train(model, optimizer, steps))
    rates = [group["lr"] for group in optimizer.param_groups]
    print(f"lr from {min(rates):.1e} in the first layer to {max(rates):.1e} in the last")
    for bucket in optimizer.describe_plan().buckets:
        print(f"one set of launches by {bucket.backend!r} steps {len(bucket.params)} tensors")
    model = network()
    print("FusedAdamW, 1 group:", train(model, FusedAdamW(model.parameters(), lr=LR), steps))
    model = network()
    torchs = torch.optim.AdamW(decayed(model), lr=LR, fused=True)
    print("torch's AdamW(fused=True), 52 groups:", train(model, torchs, steps))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=200)
    main(parser.parse_args().steps)
