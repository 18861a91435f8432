"""Gradient accumulation in float16: the step itself unscales, looks for inf, clips and skips."""

# Run it: python examples/accumulation.py

import argparse

import torch
from torch import nn

from spectramind_fused import FusedAdamW, GradScaler

MICRO_BATCHES, ROWS = 4, 64


def main(steps: int) -> None:
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = nn.Sequential(nn.Linear(32, 128), nn.GELU(), nn.Linear(128, 1)).to(device)
    optimizer = FusedAdamW(model.parameters(), lr=1e-2, clip_grad_norm=0.5)
    scaler = GradScaler(device, init_scale=2.0**22, growth_interval=100)
    for step in range(1, steps + 1):
        optimizer.zero_grad()
        sum_of_losses = 0.0
        for _ in range(MICRO_BATCHES):
            inputs = torch.randn(ROWS, 32, device=device)
            targets = inputs[:, :4].sum(1, keepdim=True)
            with torch.autocast(device, dtype=torch.float16):
                outputs = model(inputs)
            loss = nn.functional.mse_loss(outputs.float(), targets) / MICRO_BATCHES
            scaler.scale(loss).backward()
            sum_of_losses += loss.item()
        scale_before = scaler.get_scale()
        scaler.step(optimizer)
        scaler.update()
        skipped = scaler.get_scale() < scale_before
        if skipped or step % 50 == 0 or step == steps:
            print(
                f"step {step:3}  loss {sum_of_losses:.3f}  scale {scale_before:8.0f}  "
                f"grad norm {optimizer.grad_norm:.3f}{'  skipped' if skipped else ''}"
            )
    taken = int(optimizer.state[model[0].weight]["step"])
    print(f"{steps} steps: {taken} taken, {steps - taken} skipped")
    print("served by", optimizer.backends())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=300)
    main(parser.parse_args().steps)
