"""A whole training step in one CUDA graph: forward, backward, clip, update, average and zeroing."""

# Run it: python examples/cuda_graph.py

import argparse
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from spectramind_fused import FusedAdamW

ROWS, WARM_UP = 256, 3


class Training:
    def __init__(self) -> None:
        torch.manual_seed(0)
        layers = [nn.Linear(32, 512), nn.GELU(), nn.Linear(512, 512), nn.GELU(), nn.Linear(512, 1)]
        self.model, self.lr = nn.Sequential(*layers), torch.tensor(1e-3)
        options = {"clip_grad_norm": 1.0, "ema_decay": 0.99, "zero_grads": True}
        self.optimizer = FusedAdamW(self.model.parameters(), self.lr, capturable=True, **options)
        self.inputs, self.loss = torch.randn(ROWS, 32), torch.zeros(())

    def step(self) -> None:
        targets = self.inputs[:, :4].sum(1, keepdim=True)
        loss = nn.functional.mse_loss(self.model(self.inputs), targets)
        loss.backward()
        self.optimizer.step()
        self.lr.mul_(0.999)
        self.loss.copy_(loss.detach())

    def captured(self) -> Callable[[], None]:
        stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP):
                self.step()
        torch.cuda.current_stream().wait_stream(stream)
        with torch.cuda.graph(graph, stream=stream):
            self.step()
        return graph.replay

    def run(self, step: Callable[[], None], batches: Tensor) -> str:
        torch.cuda.synchronize()
        begun = time.perf_counter()
        for batch in batches:
            self.inputs.copy_(batch)
            step()
        torch.cuda.synchronize()
        each = 1e3 * (time.perf_counter() - begun) / len(batches)
        norm = self.optimizer.grad_norm
        return f"{each:.3f} ms a step, lr {self.lr:.2e}, loss {self.loss:.5f}, norm {norm:.5f}"


def main(steps: int) -> None:
    torch.set_default_device("cuda")
    eager, graphed = Training(), Training()
    for _ in range(WARM_UP):
        eager.step()
    replay = graphed.captured()
    batches = torch.randn(steps, ROWS, 32)
    print("step by step:", eager.run(eager.step, batches))
    print("replayed:    ", graphed.run(replay, batches))
    one, other = (nn.utils.parameters_to_vector(t.model.parameters()) for t in (eager, graphed))
    print(f"weights differ by at most {(one - other).abs().max():.1e}")
    print("served by", graphed.optimizer.backends())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=1000)
    arguments = parser.parse_args()
    if torch.cuda.is_available():
        main(arguments.steps)
    else:
        print("This example captures a CUDA graph, and torch finds no GPU here.")
