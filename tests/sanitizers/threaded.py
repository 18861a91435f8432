"""Steps whose chunks are taken by many threads, watched by ThreadSanitizer.

`python -m tests.sanitizers.threaded KERNELS THREADS threads_of_its_own|threads_that_overlap`, under
libtsan; both libraries are built for it. Python and torch are not: of them it sees what they
allocate, lock and start.
"""

import ctypes
import sys
import threading
from pathlib import Path

import torch

from spectramind_fused.kernels import cpu
from tests.sanitizers.every_step import Run, combinations

# Chunks of 16,384 elements, pieces of 8,192; tensors that end beside another's first element.
SIZES = (40_000, 1, 33, 16384 + 7)


def two_at_once():
    """Two optimizers, each in a thread of Python's."""
    runs = [Run("AdamW", {"clip_grad_norm": 1.0, "ema_decay": 0.9}, torch.float32, SIZES)
            for _ in range(2)]  # fmt: skip

    def steps(run):
        for _ in range(20):
            run.step()

    threads = [threading.Thread(target=steps, args=(run,)) for run in runs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for mine, other in zip(runs[0].held(), runs[1].held(), strict=True):
        assert torch.equal(mine, other)


def main(kernels, library, share):
    torch.set_num_threads(1)
    cpu._LIBRARY = Path(kernels).resolve(strict=True)
    function = getattr(ctypes.CDLL(library), share)
    cpu._parallel_for = lambda: ctypes.cast(function, ctypes.c_void_p)
    every = list(combinations(every=False))
    for chosen in every:
        print(*chosen, flush=True)
        run = Run(*chosen, SIZES)
        for _ in range(2):
            run.step()
    two_at_once()
    print(f"{len(every)} combinations", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
