"""Hugging Face's Trainer: its groups and schedule, FusedAdamW's clip and averaged weights."""

# Run it: python examples/hf_trainer.py

import argparse
import inspect
import tempfile

import torch
import transformers
from torch import Tensor

from spectramind_fused import FusedAdamW

CONTEXT, HELD_OUT = 64, 20


def rows_of_bytes() -> list[dict[str, Tensor]]:
    source = inspect.getsource(transformers.trainer).encode()
    rows = torch.tensor(list(source)).split(CONTEXT)[:-1]
    return [{"input_ids": row, "labels": row} for row in rows]


def main(steps: int) -> None:
    transformers.set_seed(0)
    rows = rows_of_bytes()
    config = transformers.LlamaConfig(
        vocab_size=256, hidden_size=64, intermediate_size=128, num_hidden_layers=2,
        num_attention_heads=4, max_position_embeddings=CONTEXT, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        arguments = transformers.TrainingArguments(
            output_dir=folder, max_steps=steps, per_device_train_batch_size=16, weight_decay=0.1,
            lr_scheduler_type="constant_with_warmup", warmup_steps=10, max_grad_norm=0.0,
            logging_steps=50, save_strategy="no", report_to="none", disable_tqdm=True,
            dataloader_pin_memory=torch.cuda.is_available(),
        )  # fmt: skip
        options = {"lr": 5e-3, "clip_grad_norm": 1.0, "ema_decay": 0.98}
        trainer = transformers.Trainer(
            transformers.LlamaForCausalLM(config),
            arguments,
            train_dataset=rows[:-HELD_OUT],
            eval_dataset=rows[-HELD_OUT:],
            optimizer_cls_and_kwargs=(FusedAdamW, options),
        )
        trainer.train()
        optimizer = trainer.optimizer.optimizer
        trained = trainer.evaluate()["eval_loss"]
        with optimizer.ema_weights():
            averaged = trainer.evaluate()["eval_loss"]
    print(f"held-out loss {trained:.3f}, with averaged weights {averaged:.3f}")
    print(f"last gradient norm before clipping {optimizer.grad_norm:.3f}")
    print(f"{type(optimizer).__name__} served by {optimizer.backends()}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=200)
    main(parser.parse_args().steps)
