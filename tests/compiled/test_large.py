"""More than 2**31 elements: in one tensor, and in all. Other libraries step nothing there.

The tensors have that size, but of their memory only what is touched is there: of the chunks of each
tensor only the last one runs.
"""

from array import array

import pytest
import torch

from spectramind_fused.kernels.native import NativeTables
from spectramind_fused.stepping import plan as planning
from tests.asserts import assert_equal
from tests.backends import KERNELS
from tests.oracle import CLASSES

STATES = ("exp_avg", "exp_avg_sq")


def last_of_each(chunks):
    changes = torch.ones(len(chunks), dtype=torch.bool, device=chunks.device)
    changes[:-1] = chunks[1:, 0] != chunks[:-1, 0]
    return chunks[changes]


def cut(tables):
    """Leaves of each tensor its last chunk."""
    same = tables.pieces is tables.chunks
    tables.chunks = last_of_each(tables.chunks)
    tables.pieces = tables.chunks if same else last_of_each(tables.pieces)
    if isinstance(tables, NativeTables):
        for view, chunks in ((tables.view, tables.chunks), (tables.norm_view, tables.pieces)):
            view.chunks, view.chunk_table = len(chunks), chunks.data_ptr()
    tables.chunk_starts = tables.piece_starts = array("q", range(tables.tensors + 1))


@pytest.fixture
def last_chunks_only(monkeypatch):
    place_all = planning.place_all

    def place_and_cut(tables, rows):
        place_all(tables, rows)
        for of_one in tables:
            cut(of_one)

    monkeypatch.setattr(planning, "place_all", place_and_cut)


@pytest.mark.compiled
@pytest.mark.parametrize("backend", KERNELS)
@pytest.mark.parametrize("sizes", [(2**31 + 77,), (2**30 + 5, 2**30 + 77, 9)], ids=["one", "all"])
def test_the_far_end_is_stepped(last_chunks_only, backend, sizes):
    params = [torch.empty(size, dtype=torch.bfloat16).requires_grad_() for size in sizes]
    ends = [slice(size // 16384 * 16384, size) for size in sizes]
    twins = []
    options = {"lr": 0.1, "clip_grad_norm": 1.0}
    optimizer = CLASSES["AdamW"][0](params, backend=backend, zero_grads=True, **options)
    for p, end in zip(params, ends, strict=True):
        p.grad = torch.empty_like(p)
        optimizer.state[p] = {name: torch.empty_like(p.detach()) for name in STATES}
        for tensor in (p.detach(), p.grad, *optimizer.state[p].values()):
            tensor[max(0, end.start - 9) : end.start] = 3.0
            tensor[end] = 0.0
        optimizer.state[p]["step"] = torch.tensor(0.0)
        p.detach()[end] = torch.randn(end.stop - end.start)
        p.grad[end] = torch.randn(end.stop - end.start)
        twins.append(p.detach()[end].to("cpu", copy=True).requires_grad_())
        twins[-1].grad = p.grad[end].to("cpu", copy=True)
    twin = CLASSES["AdamW"][0](twins, backend="cpu", **options)
    optimizer.step()
    twin.step()
    assert_equal([optimizer.grad_norm], [twin.grad_norm])
    for p, q, end in zip(params, twins, ends, strict=True):
        assert_equal([p.detach()[end]], [q])
        assert_equal([optimizer.state[p][name][end] for name in STATES],
                     [twin.state[q][name] for name in STATES])  # fmt: skip
        assert not p.grad[end].any()
        before = [p.detach(), p.grad, *(optimizer.state[p][name] for name in STATES)]
        assert all((t[max(0, end.start - 9) : end.start] == 3.0).all() for t in before)
