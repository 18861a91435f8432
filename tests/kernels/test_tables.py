"""The tables: every element in exactly one chunk, uploads only when something changed."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from spectramind_fused.multi_tensor import is_dense, relaid
from spectramind_fused.multi_tensor.tables import _chunks


@given(st.lists(st.integers(0, 50), max_size=20), st.integers(1, 16))
def test_chunks_cover_every_element_once(sizes, elements):
    seen = [[0] * size for size in sizes]
    for tensor, first in _chunks(torch.tensor(sizes, dtype=torch.int64), elements).tolist():
        assert first < sizes[tensor]
        for at in range(first, min(first + elements, sizes[tensor])):
            seen[tensor][at] += 1
    assert all(count == 1 for tensor in seen for count in tensor)


@pytest.mark.parametrize(
    ("tensor", "dense"),
    [
        (torch.zeros(()), True),
        (torch.zeros(0), True),
        (torch.zeros(3, 4).t(), True),
        (torch.zeros(2, 3, 4, 5).to(memory_format=torch.channels_last), True),
        (torch.zeros(3, 1, 4).transpose(0, 2), True),
        (torch.zeros(3, 4)[:, ::2], False),
        (torch.zeros(3, 4)[:, :3], False),
        (torch.zeros(3, 1).expand(3, 4), False),
        (torch.zeros(8).as_strided((3, 3), (2, 1)), False),
    ],
)
def test_dense_layouts(tensor, dense):
    assert is_dense(tensor) is dense


def test_relaid_copies_only_what_lies_otherwise():
    like = torch.zeros(4, 3).t()
    same = torch.rand(4, 3).t()
    assert relaid(same, like) is same
    other = torch.rand(3, 4)
    moved = relaid(other, like)
    assert moved.stride() == like.stride()
    assert torch.equal(moved, other)
