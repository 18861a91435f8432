"""From Python lists to device tensors: only when they changed, and never into a wrong graph."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from spectramind_fused.multi_tensor import runtime
from spectramind_fused.multi_tensor.runtime import Watch

_ALIGNMENT = 16  # bytes, of each array in a common copy
_ROWS_READY = 8  # sets of gradient addresses that may be captured between two steps outside


def on_host(values: Any, dtype: torch.dtype = torch.int64) -> Tensor:
    """A CPU tensor, whatever the default device is."""
    return torch.tensor(values, dtype=dtype, device="cpu")


def copied(arrays: list[Tensor], device: torch.device) -> list[Tensor]:
    """Arrays of the host on a device: by one copy from pinned memory, which runs by itself."""
    if not runtime.current.serves(device):
        return [array.to(device) for array in arrays]
    starts, end = [], 0
    for array in arrays:
        starts.append(end)
        end += -(-array.nbytes // _ALIGNMENT) * _ALIGNMENT
    host = runtime.current.pinned(end)
    for array, start in zip(arrays, starts, strict=True):
        host[start : start + array.nbytes].copy_(array.view(-1).view(torch.uint8))
    there = host.to(device, non_blocking=True)
    return [
        there[start : start + array.nbytes].view(array.dtype).view(array.shape)
        for array, start in zip(arrays, starts, strict=True)
    ]


class Uploaded:
    """A device tensor that follows a list of numbers.

    Attributes:
        tensor: the numbers on the device. It stays where it is: graphs hold its address.
    """

    def __init__(self, tensor: Tensor, values: list[Any]) -> None:
        """As above; `values` are those that are there."""
        self.tensor = tensor
        self._values: list[Any] | None = values
        self._device = tensor.device
        self._on_gpu = runtime.current.serves(tensor.device)

    def set(self, values: list[Any]) -> None:
        """Uploads `values` if they are not those that are there.

        Raises:
            RuntimeError: they changed, and a CUDA graph is being captured, which would repeat
                the upload at every replay.
        """
        if values == self._values:
            return
        if self._on_gpu and runtime.current.capturing(self._device):
            raise RuntimeError(
                "Hyperparameters changed since the last step, and a CUDA graph is being "
                "captured: call optimizer.refresh_hyperparameters() before the capture."
            )
        host = on_host(values, self.tensor.dtype)
        if self._on_gpu:  # torch keeps pinned memory from others until the copy has been made
            pinned = runtime.current.pinned(host.nbytes).view(host.dtype).view(host.shape)
            host = pinned.copy_(host)
        self.tensor.copy_(host, non_blocking=True)
        self._values = values


class UploadedInGraphs(Uploaded):
    """As `Uploaded`, but a captured graph repeats the upload at every replay.

    So the graph does not depend on what steps outside it left in the tensor. It reads its source
    at every replay: allocated before the capture, and kept for as long as the graph is there.
    """

    def __init__(self, tensor: Tensor, values: list[int]) -> None:
        super().__init__(tensor, values)
        self._ready: list[Tensor] = []
        self._in_graphs: list[tuple[Watch, list[int], Tensor]] = []
        self._captured_last: tuple[Watch, list[int]] | None = None

    def set(self, values: list[int]) -> None:
        """Uploads `values` if they are not those that are there; into a graph once at least.

        Raises:
            RuntimeError: more sets of values are captured than there is room for.
        """
        if not self._on_gpu:
            super().set(values)
        elif runtime.current.capturing(self._device):
            self._capture(values)
        else:
            there, self._in_graphs = self._in_graphs, []
            for held in there:
                if held[0].gone():
                    self._ready.append(held[2])
                else:
                    self._in_graphs.append(held)
            if self._in_graphs:
                self._values = None  # a replay may have left its own
            super().set(values)
            self._make_ready()

    def _capture(self, values: list[int]) -> None:
        watch = runtime.current.watch(self._device)
        if self._captured_last == (watch, values):
            return
        same = (r for known, held, r in self._in_graphs if known.same(watch) and held == values)
        row = next(same, None)
        if row is None:
            row = self._filled_row(values)
            self._in_graphs.append((watch, values, row))
        self.tensor.copy_(row, non_blocking=True)
        self._captured_last, self._values = (watch, values), None

    def _filled_row(self, values: list[int]) -> Tensor:
        if not self._ready:
            raise RuntimeError(
                f"No more than {_ROWS_READY} captured steps in a row may have their gradients at "
                "other addresses: run one step of this optimizer outside a CUDA graph, then "
                "capture the others."
            )
        row = self._ready.pop()
        row.numpy()[:] = values
        return row

    def _make_ready(self) -> None:
        missing = _ROWS_READY - len(self._ready)
        if missing > 0:
            room = runtime.current.pinned(missing * self.tensor.nbytes)
            self._ready += room.view(self.tensor.dtype).view(missing, -1).unbind()
