"""Times the whole tail of a training step beside torch's own passes, interleaved.

python -m benchmarks.tail
"""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable
from itertools import cycle

import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from benchmarks.step import WORKLOADS
from spectramind_fused import FusedAdamW, GradScaler

K, ALPHA, DECAY, MAX_NORM, SCALE = 5, 0.5, 0.999, 1.0, 1024.0
CYCLES = 7  # of K steps, one of which syncs the slow weights
# fp32 bytes per parameter: as passes of their own, and in the step
CLIP, STEP, LOOKAHEAD, EMA = (12.0, 4.0), (28.0, 28.0), (20 / K, 8 / K), (12.0, 8.0)
PLAIN = {"clip": CLIP, "step": STEP, "Lookahead": LOOKAHEAD, "EMA": EMA}
WHOLE = {"unscale": (8.0, 0.0), **PLAIN, "zero": (4.0, 4.0)}
Step = Callable[[], None]


def torchs_passes(params: list[Tensor], amp: bool, fused: bool) -> Step:
    """What a careful user of torch 2.13 writes, each pass in its fastest form."""
    kind = {"fused": True} if fused else {"foreach": True}
    optimizer = torch.optim.AdamW(params, **kind)
    scaler = torch.amp.GradScaler("cpu", init_scale=SCALE, enabled=amp)
    scaler.scale(torch.ones(()))
    model = torch.nn.ParameterList(params)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(DECAY))
    average.update_parameters(model)  # the first only copies
    fast = [p.detach() for p in params]
    slow = [p.clone() for p in fast]
    due = cycle([False] * (K - 1) + [True])

    def step() -> None:
        if amp:
            scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(params, MAX_NORM, foreach=True)
        scaler.step(optimizer)
        scaler.update()
        if next(due):
            torch._foreach_lerp_(slow, fast, ALPHA)
            torch._foreach_copy_(fast, slow)
        average.update_parameters(model)
        if amp:
            optimizer.zero_grad(set_to_none=False)

    return step


def one_step(params: list[Tensor], amp: bool) -> Step:
    """The same in this library."""
    optimizer = FusedAdamW(
        params,
        lookahead_k=K,
        lookahead_alpha=ALPHA,
        ema_decay=DECAY,
        clip_grad_norm=MAX_NORM,
        zero_grads=amp,
    )
    scaler = GradScaler("cpu", init_scale=SCALE, enabled=amp)
    scaler.scale(torch.ones(()))

    def step() -> None:
        scaler.step(optimizer)
        scaler.update()

    return step


def compare(params: list[Tensor], steps: dict[str, Step]) -> dict[str, list[float]]:
    """Milliseconds per step, each the mean over one cycle of K, the first cycle left out."""
    seen: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(CYCLES * K):
        for name, step in steps.items():
            for p in params:
                assert p.grad is not None
                p.grad.fill_(1e-3)
            begin = time.perf_counter()
            step()
            seen[name].append(1e3 * (time.perf_counter() - begin))
    means = {
        name: [statistics.mean(times[i : i + K]) for i in range(0, len(times), K)]
        for name, times in seen.items()
    }
    return {name: cycles[1:] for name, cycles in means.items()}


def main() -> None:
    """Prints one table per workload, with and without AMP."""
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {platform.machine()}")
    for workload, shapes in WORKLOADS.items():
        params = [torch.randn(shape, requires_grad=True) for shape in shapes]
        for p in params:
            p.grad = torch.zeros_like(p)
        for amp, parts in ((False, PLAIN), (True, WHOLE)):
            apart, together = map(sum, zip(*parts.values(), strict=True))
            steps = {
                "torch, foreach": torchs_passes(params, amp, fused=False),
                f"torch, fused: {apart:g} bytes per parameter": torchs_passes(params, amp, True),
                f"FusedAdamW: {together:g} bytes per parameter": one_step(params, amp),
            }
            times = compare(params, steps)
            *_, best, ours = (statistics.median(cycles) for cycles in times.values())
            print(f"\n{workload}: {', '.join(parts)}; median ms (fastest, slowest)")
            for name, cycles in times.items():
                spread = f"({min(cycles):.2f}, {max(cycles):.2f})"
                print(f"  {name:42s} {statistics.median(cycles):8.2f}  {spread}")
            print(f"  {best / ours:.2f} times as fast as torch, fused")


if __name__ == "__main__":
    main()
