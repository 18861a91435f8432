"""Steps through memory that ends where it must: a page before and one behind every slot forbids
all access, so a read or a write one element too far ends the process.

`python -m tests.sanitizers.guarded few|all|before|behind [LIBRARY]` prints what it will step.
`before` and `behind` plant a fault: a kernel that begins 8 bytes too early, or ends an element too
late.
"""

import ctypes
import mmap
import sys
from pathlib import Path

import torch

from spectramind_fused.kernels import cpu
from tests.sanitizers.every_step import Run, combinations

# Around groups of 32 and blocks of 1,024; the last ends in a second chunk and a fourth piece.
SIZES = (1, 7, 33, 1025, 16384 + 8192 + 41)
PAGE = mmap.PAGESIZE
PROT_NONE = 0
_libc = ctypes.CDLL(None, use_errno=True)


class Guarded:
    """Makes copies of tensors that lie against a forbidden page.

    Attributes:
        at_end: whether they end at the page behind them; else they begin at the one before.
        addresses: of the copies.
    """

    def __init__(self, at_end):
        self.at_end, self.addresses = at_end, set()

    def __call__(self, tensor):
        """A copy; of an empty tensor, which has no memory, the tensor itself."""
        if not tensor.nbytes:
            return tensor
        room = -(-tensor.nbytes // PAGE) * PAGE
        memory = mmap.mmap(-1, room + 2 * PAGE)
        begin = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        for page in (begin, begin + PAGE + room):
            if _libc.mprotect(ctypes.c_void_p(page), PAGE, PROT_NONE):
                raise OSError(ctypes.get_errno(), "mprotect")
        offset = PAGE + (room - tensor.nbytes if self.at_end else 0)
        flat = torch.frombuffer(memory, dtype=tensor.dtype, offset=offset, count=tensor.numel())
        copy = flat.view(tensor.shape).copy_(tensor.detach())
        self.addresses.add(copy.data_ptr())
        return copy


def move(run, place):
    """Everything that a step writes to, to other memory."""
    optimizer = run.optimizer
    for p in run.params:
        p.data = place(p.detach())
        for name, value in optimizer.state.get(p, {}).items():
            optimizer.state[p][name] = place(value)
    optimizer._counters.update({p: place(v) for p, v in optimizer._counters.items()})


def check(kind, options, dtype, at_end, fault=None):
    """Two steps between forbidden pages are those taken anywhere, bit for bit."""
    free, run = (Run(kind, options, dtype, SIZES) for _ in range(2))
    place = Guarded(at_end)
    for _ in range(3):
        free.step()
    run.step()
    move(run, place)
    if fault is not None:
        plant(fault)
    for _ in range(2):
        run.step(place)
        plan = run.optimizer.describe_plan()
        assert not plan.eager
        for bucket in plan.buckets:
            assert place.addresses.issuperset(bucket.tables.pointers.flatten().tolist())
    for mine, other in zip(run.held(), free.held(), strict=True):
        assert mine.data_ptr() in place.addresses
        bits = [t.detach().view(-1).view(torch.uint8) for t in (mine, other)]
        assert torch.equal(*bits)


def plant(fault):
    """From now on kernels go an element too far."""
    update = cpu.CpuBackend.update

    def too_far(self, tables):
        if fault == "behind":
            tables.sizes += 1
        else:
            tables.pointers -= 8  # as aligned as before
        update(self, tables)

    cpu.CpuBackend.update = too_far


def main(what, library=None):
    torch.set_num_threads(2)
    if library is not None:
        cpu._LIBRARY = Path(library).resolve(strict=True)
    fault = what if what in ("before", "behind") else None
    every = list(combinations(every=what == "all"))
    for kind, options, dtype in every:
        print(kind, dtype, options, flush=True)
        for at_end in [fault == "behind"] if fault else [True, False]:
            check(kind, options, dtype, at_end, fault)
    print(f"{len(every)} combinations", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
