"""A byte-level GPT learns Python's own sources; the step clips, and averages the weights."""

# Run it: python examples/byte_gpt.py

import argparse
import sysconfig
from pathlib import Path

import torch
from torch import Tensor, nn

from spectramind_fused import FusedAdamW

CONTEXT, WIDTH, LAYERS, HEADS, BATCH, HELD_OUT = 64, 96, 2, 4, 16, 500_000


class ByteGPT(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.bytes = nn.Embedding(256, WIDTH)
        self.places = nn.Parameter(torch.zeros(CONTEXT, WIDTH))
        block = nn.TransformerEncoderLayer(
            WIDTH, HEADS, 4 * WIDTH, dropout=0.0, activation="gelu", batch_first=True,
            norm_first=True,
        )  # fmt: skip
        self.blocks = nn.TransformerEncoder(
            block, LAYERS, norm=nn.LayerNorm(WIDTH), enable_nested_tensor=False
        )
        self.head = nn.Linear(WIDTH, 256)
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(CONTEXT))

    def loss(self, rows: Tensor) -> Tensor:
        x = self.bytes(rows[:, :-1]) + self.places
        logits = self.head(self.blocks(x, mask=self.mask, is_causal=True))
        return nn.functional.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten())


def standard_library() -> Tensor:
    files = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    text = b"".join(path.read_bytes() for path in files)
    return torch.frombuffer(bytearray(text), dtype=torch.uint8)


def draw(text: Tensor, rows: int) -> Tensor:
    windows = text.unfold(0, CONTEXT + 1, 1)
    return windows[torch.randint(len(windows), (rows,))].long()


def main(steps: int) -> None:
    torch.manual_seed(0)
    text = standard_library()
    train, held_out = text[:-HELD_OUT], draw(text[-HELD_OUT:], 256)
    model = ByteGPT()
    optimizer = FusedAdamW(
        model.parameters(), lr=3e-3, weight_decay=0.1, clip_grad_norm=1.0, ema_decay=0.98
    )
    warm_up = torch.optim.lr_scheduler.LinearLR(optimizer, 0.05, total_iters=50)
    print(f"{len(text):,} bytes, {sum(p.numel() for p in model.parameters()):,} parameters")
    for step in range(1, steps + 1):
        optimizer.zero_grad()
        loss = model.loss(draw(train, BATCH))
        loss.backward()
        optimizer.step()
        warm_up.step()
        if step % 100 == 0 or step == steps:
            print(f"step {step:4}  train loss {loss:.3f}  grad norm {optimizer.grad_norm:.2f}")
    with torch.no_grad():
        print(f"held-out loss, nats per byte: {model.loss(held_out):.3f}")
        with optimizer.ema_weights():
            print(f"held-out loss with averaged weights: {model.loss(held_out):.3f}")
    print("served by", optimizer.backends())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=600)
    main(parser.parse_args().steps)
