"""How tensors lie whose mean squares are kept for rows and columns, and who takes which sums.

`csrc/tables.h` says what the columns are (`LayoutColumn`, `TileColumn`), `csrc/factored.h` how they
are read.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import product
from typing import Any, NamedTuple

import torch
from torch import Tensor

from spectramind_fused.multi_tensor.storages import PIECE
from spectramind_fused.multi_tensor.upload import copied, on_host

LAYOUT_COLUMNS, TILE_COLUMNS, PIECE_COLUMNS, BATCH_COLUMNS, MEASURE_COLUMNS = 13, 12, 4, 3, 4
OUTER_VECTOR, INNER_VECTOR = 5, 9  # where their columns begin in a layout

TILE = 4 * PIECE  # elements
WIDEST = 512  # elements of a row that a tile has at most, where there are rows enough
STRAIGHT = 128  # elements: shorter rows are summed by one thread each, and so are their columns
PIECE_OF_VECTOR = 2048  # elements
BATCH = 4096  # elements of rows
# Of one matrix that a program may have to walk alone, where its rows and columns do not follow
# each other in memory.
MOST_ALONE = 2**18
# Elements that follow each other inside of the outer dimension: kernels count them in 32 bits.
MOST_IN_LINE = 2**30


class Layout(NamedTuple):
    """A tensor in memory: [first, outer, between, inner, within].

    Attributes:
        first: how many there are before the outer dimension.
        outer: size of the one of the last two dimensions that is the outer one in memory.
        between: how many there are between both.
        inner: size of the other.
        within: how many there are inside of both.
        rows_are_outer: whether an outer vector, one that has no inner dimension, is of rows.
    """

    first: int
    outer: int
    between: int
    inner: int
    within: int
    rows_are_outer: bool

    @classmethod
    def of(cls, tensor: Tensor) -> Layout:
        """Of a dense tensor of two dimensions or more.

        Dimensions of size 1 are put where they make long stretches.
        """
        rows, columns = tensor.dim() - 2, tensor.dim() - 1
        count, (r, c) = tensor.numel(), tensor.shape[-2:]
        if count == 0:
            return cls(0, 1, 1, 1, 1, True)
        if min(r, c) == 1:  # one of them has no place of its own
            long = rows if r > 1 else columns
            size = tensor.shape[long]
            within = tensor.stride(long) if size > 1 else count
            return cls(count // (size * within), 1, 1, size, within, long == columns)
        inner, outer = sorted((rows, columns), key=tensor.stride)
        within, line = tensor.stride(inner), tensor.stride(outer)
        o, i = tensor.shape[outer], tensor.shape[inner]
        return cls(count // (o * line), o, line // (i * within), i, within, outer == rows)

    @property
    def size(self) -> int:
        """Elements of the tensor."""
        return self.first * self.outer * self.between * self.inner * self.within

    @property
    def line(self) -> int:
        """Elements of one step along the outer dimension."""
        return self.between * self.inner * self.within

    @property
    def alone(self) -> int:
        """Elements that one program has to walk, where a matrix cannot be cut into tiles."""
        straight = self.between == self.within == 1
        return 1 if straight else self.outer * self.between * self.inner

    def tiles(self) -> Iterator[tuple[int, ...]]:
        """The ranges of each: first and last of `first`, `outer`, `inner`, `within`; parts.

        There are not more than the tensor has rows of partial sums, one for each `PIECE`.
        """
        of_one = self.outer * self.between * self.inner * self.within
        firsts, outers, inners, withins = 1, self.outer, self.inner, self.within
        if of_one <= TILE:
            firsts = TILE // of_one
        elif self.between == self.within == 1 and self.inner < STRAIGHT:
            outers = -(-self.outer // (of_one // PIECE))
        elif self.between == self.within == 1:
            inners = _evenly(self.inner, max(WIDEST, TILE // self.outer), 64)
            outers = _evenly(self.outer, TILE // inners, 1)
        else:
            withins = max(1, TILE // (self.outer * self.between * self.inner))
        for a, b, c, d in product(
            _ranges(self.first, firsts),
            _ranges(self.outer, outers),
            _ranges(self.inner, inners),
            _ranges(self.within, withins),
        ):
            yield *a, *b, *c, *d, c[0] // inners, b[0] // outers


class Factoring:
    """The tables of a bucket of factored tensors, on its device, and the room for its sums.

    Attributes:
        layouts: int64 [tensors, LAYOUT_COLUMNS].
        tiles: int64 [tiles, TILE_COLUMNS].
        pieces: int64 [pieces, PIECE_COLUMNS], of the vectors.
        batches: int64 [batches, BATCH_COLUMNS], of the matrices.
        counts: of each tensor how many tiles, pieces and batches it has.
        outer, inner: of each tensor its factors, float32 (float64 of float64 tensors).
        dtype: of the states that are vectors.
    """

    def __init__(self, tensors: list[Tensor], rows: list[Tensor], columns: list[Tensor]) -> None:
        """Makes them.

        Args:
            tensors: dense ones, of two dimensions or more.
            rows: of each a state with an element for each row, laid out in its order.
            columns: likewise, of each column.
        """
        layouts = [Layout.of(tensor) for tensor in tensors]
        self.device, self.dtype = tensors[0].device, rows[0].dtype
        wide = tensors[0].dtype == torch.float64
        compute = torch.float64 if wide else torch.float32
        held = [
            (row, column) if layout.rows_are_outer else (column, row)
            for layout, row, column in zip(layouts, rows, columns, strict=True)
        ]
        sizes = [[vector.numel() for vector in pair] for pair in held]
        tiles = [list(layout.tiles()) if layout.size else [] for layout in layouts]
        parts = [[1 + max((tile[at] for tile in of), default=0) for at in (-2, -1)] for of in tiles]
        room = [[a * b for a, b in zip(*of, strict=True)] for of in zip(sizes, parts, strict=True)]
        self._factors = torch.empty(sum(map(sum, sizes)), dtype=compute, device=self.device)
        total = sum(map(sum, room)) * (2 if wide else 1)
        self._partials = torch.empty(total, dtype=torch.float64, device=self.device)
        flat = [size for pair in sizes for size in pair]
        cut = list(torch.split(self._factors, flat))
        self.outer, self.inner = cut[::2], cut[1::2]
        of_partial = 16 if wide else 8
        at, table = self._partials.data_ptr(), []
        for i, layout in enumerate(layouts):
            row = [*layout[1:5], int(layout.rows_are_outer)]
            for j in range(2):
                factor = cut[2 * i + j].data_ptr()
                row += [held[i][j].data_ptr(), factor, at, parts[i][j]]
                at += room[i][j] * of_partial
            table.append(row)
        listed: list[list[Any]] = [
            [[i, n, *tile] for i, of in enumerate(tiles) for n, tile in enumerate(of)],
            list(_pieces(layouts, sizes)),
            list(_batches(layouts)),
        ]
        owners = [Counter(row[0] for row in of) for of in listed]
        self.counts = [[of[i] for i in range(len(tensors))] for of in owners]
        arrays = [on_host(table), *map(on_host, listed)]
        columns_of = (LAYOUT_COLUMNS, TILE_COLUMNS, PIECE_COLUMNS, BATCH_COLUMNS)
        shaped = [a.view(-1, c) for a, c in zip(arrays, columns_of, strict=True)]
        self.layouts, self.tiles, self.pieces, self.batches = copied(shaped, self.device)

    def on_device(self) -> list[Tensor]:
        """Everything here that a kernel reads or writes."""
        tables = [self.layouts, self.tiles, self.pieces, self.batches]
        return [*tables, self._factors, self._partials]


class Measuring:
    """The room for what is measured of a bucket's tensors before its steps.

    Attributes:
        first_chunks: int64 [tensors + 1], of each tensor its first chunk, then the total.
        sums: float64 [chunks, MEASURE_COLUMNS].
    """

    def __init__(self, sizes: Tensor, chunk_elements: int, device: torch.device) -> None:
        """Makes them.

        Args:
            sizes: elements of each tensor, on the host.
            chunk_elements: of a chunk.
            device: of the tensors.
        """
        counts = (sizes + chunk_elements - 1) // chunk_elements
        first = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
        (self.first_chunks,) = copied([first], device)
        shape = (int(first[-1]), MEASURE_COLUMNS)
        self.sums = torch.empty(shape, dtype=torch.float64, device=device)

    def on_device(self) -> list[Tensor]:
        """Everything here that a kernel reads or writes."""
        return [self.first_chunks, self.sums]


def _evenly(size: int, most: int, multiple: int) -> int:
    """So many in each of the fewest parts of at most `most`, all of about one size."""
    parts = -(-size // most)
    return -(-size // (parts * multiple)) * multiple


def _ranges(size: int, step: int) -> list[tuple[int, int]]:
    return [(at, min(at + step, size)) for at in range(0, size, step)]


def _pieces(layouts: list[Layout], sizes: list[list[int]]) -> Iterator[tuple[int, ...]]:
    for i, (layout, of) in enumerate(zip(layouts, sizes, strict=True)):
        if layout.size:
            for vector, size in zip((OUTER_VECTOR, INNER_VECTOR), of, strict=True):
                for first, last in _ranges(size, PIECE_OF_VECTOR):
                    yield i, vector, first, last


def _batches(layouts: list[Layout]) -> Iterator[tuple[int, ...]]:
    for i, layout in enumerate(layouts):
        if layout.size:
            rows = layout.outer if layout.rows_are_outer else layout.inner
            matrices = layout.first * layout.between * layout.within
            for first, last in _ranges(matrices, max(1, BATCH // rows)):
                yield i, first, last
