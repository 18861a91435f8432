"""timm's model, parameter groups, schedule and metrics around a step that clips and averages."""

# Run it: python examples/timm_training.py

import argparse

import timm
import torch
from timm.optim import param_groups_weight_decay
from timm.scheduler import CosineLRScheduler
from timm.utils import AverageMeter, accuracy
from torch import Tensor, nn

from spectramind_fused import FusedAdamW

IMAGE, BATCH = 64, 16


def images(count: int) -> tuple[Tensor, Tensor]:
    colours = torch.randint(3, (count,))
    pixels = torch.randn(count, 3, IMAGE, IMAGE)
    pixels[torch.arange(count), colours] += 0.3
    return pixels, colours


@torch.no_grad()
def top1(model: nn.Module, pixels: Tensor, labels: Tensor) -> float:
    model.eval()
    (percent,) = accuracy(model(pixels), labels)
    model.train()
    return percent.item()


def main(steps: int) -> None:
    torch.manual_seed(0)
    model = timm.create_model("test_vit", num_classes=3, img_size=IMAGE)
    groups = param_groups_weight_decay(model, weight_decay=0.05)
    optimizer = FusedAdamW(groups, lr=1e-3, clip_grad_norm=1.0, ema_decay=0.95)
    schedule = CosineLRScheduler(
        optimizer, t_initial=steps, warmup_t=10, warmup_lr_init=1e-4, lr_min=1e-5,
        t_in_epochs=False,
    )  # fmt: skip
    schedule.step_update(0)
    losses = AverageMeter()
    for step in range(1, steps + 1):
        pixels, labels = images(BATCH)
        loss = nn.functional.cross_entropy(model(pixels), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step_update(step)
        losses.update(loss.item(), BATCH)
        if step % 25 == 0 or step == steps:
            print(f"step {step:3}  mean loss {losses.avg:.3f}  grad norm {optimizer.grad_norm:.3f}")
            losses.reset()
    held_out = images(256)
    print(f"held-out accuracy {top1(model, *held_out):.1f} %")
    with optimizer.ema_weights():
        print(f"held-out accuracy with averaged weights {top1(model, *held_out):.1f} %")
    decays = ", ".join(f"{len(g['params'])} with decay {g['weight_decay']}" for g in groups)
    print(f"parameters: {decays}; served by {optimizer.backends()}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=100)
    main(parser.parse_args().steps)
