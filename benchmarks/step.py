"""Times one optimizer step beside torch's own, interleaved, and prints medians.

python -m benchmarks.step
"""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable

import torch

from spectramind_fused import FusedAdamW

ROUNDS = 15
WORKLOADS = {
    "2,000 tensors of 550": [(550,)] * 2000,
    "124 M in GPT-2 small's shapes": [(50257, 768), (1024, 768)]
    + [(768, 2304), (2304,), (768, 768), (768,), (768, 3072), (3072,), (3072, 768), (768,)] * 12
    + [(768,)] * 50,
}
Options = dict[str, Callable[[list[torch.Tensor]], torch.optim.Optimizer]]
OPTIONS: Options = {
    "FusedAdamW": lambda p: FusedAdamW(p),
    "FusedAdamW, lookahead_k=6": lambda p: FusedAdamW(p, lookahead_k=6),
    "torch.optim.AdamW, fused=True": lambda p: torch.optim.AdamW(p, fused=True),
    "torch.optim.AdamW, foreach=True": lambda p: torch.optim.AdamW(p, foreach=True),
}


def main() -> None:
    """Prints one table per workload."""
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {platform.machine()}")
    for name, shapes in WORKLOADS.items():
        params = [torch.randn(shape, requires_grad=True) for shape in shapes]
        for p in params:
            p.grad = torch.randn_like(p)
        optimizers = {option: make(params) for option, make in OPTIONS.items()}
        times: dict[str, list[float]] = {option: [] for option in OPTIONS}
        for _ in range(ROUNDS):
            for option, optimizer in optimizers.items():
                begin = time.perf_counter()
                optimizer.step()
                times[option].append(1e3 * (time.perf_counter() - begin))
        print(f"\n{name}: median ms (fastest, slowest) of {ROUNDS - 3} rounds")
        for option, seen in times.items():
            kept = seen[3:]
            print(
                f"  {option:32s} {statistics.median(kept):8.2f}  ({min(kept):.2f}, {max(kept):.2f})"
            )


if __name__ == "__main__":
    main()
