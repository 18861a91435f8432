"""A LightningModule whose optimizer clips and averages in its step, beside a warm-up schedule."""

# Run it: python examples/lightning_module.py

import argparse

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from spectramind_fused import FusedAdamW


class Regression(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(16, 128), nn.GELU(), nn.Linear(128, 1))

    def training_step(self, batch: list[Tensor]) -> Tensor:
        inputs, targets = batch
        loss = nn.functional.mse_loss(self.net(inputs), targets)
        self.log("loss", loss)
        return loss

    def on_train_batch_end(self, outputs: dict[str, Tensor], batch: object, index: int) -> None:
        if self.global_step % 50 == 0:
            norm = self.optimizers().optimizer.grad_norm
            print(f"step {self.global_step:3}  loss {outputs['loss']:.4f}  grad norm {norm:.3f}")

    def configure_optimizers(self) -> dict:
        optimizer = FusedAdamW(self.parameters(), lr=3e-3, clip_grad_norm=0.5, ema_decay=0.99)
        warm_up = torch.optim.lr_scheduler.LinearLR(optimizer, 0.1, total_iters=20)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": warm_up, "interval": "step"},
        }


def data(rows: int) -> tuple[Tensor, Tensor]:
    inputs = torch.randn(rows, 16)
    targets = inputs[:, :2].sin().sum(1, keepdim=True) + 0.1 * torch.randn(rows, 1)
    return inputs, targets


def main(steps: int) -> None:
    pl.seed_everything(0)
    loader = DataLoader(TensorDataset(*data(4096)), batch_size=32, shuffle=True)
    module = Regression()
    trainer = pl.Trainer(
        max_steps=steps, accelerator="cpu", devices=1, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module, loader)
    optimizer = module.optimizers().optimizer
    inputs, targets = data(2048)
    with torch.no_grad():
        print(f"held-out loss {nn.functional.mse_loss(module.net(inputs), targets):.4f}")
        with optimizer.ema_weights():
            averaged = nn.functional.mse_loss(module.net(inputs), targets)
    print(f"held-out loss with averaged weights {averaged:.4f}")
    print(f"{type(optimizer).__name__} served by {optimizer.backends()}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=500)
    main(parser.parse_args().steps)
