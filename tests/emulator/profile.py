"""How fast the emulator is: python -m tests.emulator.profile [capability]

A fixed set of kernels: four rules whose steps differ most, each in float32 and bfloat16, with the
whole tail (norm, advance, update with Lookahead and an average), by Triton and by CUDA C++. What
is timed is the launches of the third step, so that neither compiling nor decoding counts.
"""

from __future__ import annotations

import argparse
import time

import torch

from tests.emulator import cuda, driver
from tests.emulator.gpu import EmulatedGPU

KERNELS = [
    ("AdamW", {"amsgrad": True}),
    ("SGD", {"lr": 0.1, "momentum": 0.9, "nesterov": True}),
    ("RMSprop", {"centered": True, "momentum": 0.5}),
    ("Lion", {}),
]
TAIL = {"lookahead_k": 2, "ema_decay": 0.9, "clip_grad_norm": 1.0}
SIZES = [1, 17, 511, 1025, 8191, 8193, 20000]


def main() -> None:
    """Prints seconds in launches and instructions that blocks ran, per kernel and in all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("capability", type=int, nargs="?", default=90)
    gpu = EmulatedGPU(parser.parse_args().capability)
    driver.activate(gpu)
    if (why := cuda.missing()) is not None:
        print(why)
    else:
        cuda.activate(gpu, cuda.build())
    from tests.oracle import CLASSES

    total, seconds, executed = 0.0, 0.0, 0
    original = gpu.launch

    def timed(*args, **kwargs):  # type: ignore[no-untyped-def]
        nonlocal total
        start = time.perf_counter()
        original(*args, **kwargs)
        total += time.perf_counter() - start

    gpu.launch = timed  # type: ignore[method-assign]
    for backend in ["triton"] + ["cuda"] * (why is None):
        for kind, options in KERNELS:
            for dtype in (torch.float32, torch.bfloat16):
                torch.manual_seed(0)
                params = [torch.randn(size).to(dtype).requires_grad_() for size in SIZES]
                optimizer = CLASSES[kind][0](params, backend=backend, **TAIL, **options)
                for _ in range(3):
                    gpu.launches.clear()
                    before = total
                    for p in params:
                        p.grad = torch.randn_like(p)
                    optimizer.step()
                seconds += total - before
                count = sum(sum(launch.executed.values()) for launch in gpu.launches)
                executed += count
                name = f"{backend} {kind} {str(dtype)[6:]}"
                print(f"{name:28} {1000 * (total - before):9.1f} ms {count:9,} instructions")
    print(f"{'all':28} {1000 * seconds:9.1f} ms {executed:9,} instructions")


if __name__ == "__main__":
    main()
