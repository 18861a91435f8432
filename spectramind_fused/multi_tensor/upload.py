"""From Python lists to device tensors: only when they changed, and never into a wrong graph."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def on_host(values: list[Any], dtype: torch.dtype = torch.int64) -> Tensor:
    """A CPU tensor, whatever the default device is."""
    return torch.tensor(values, dtype=dtype, device="cpu")


class Uploaded:
    """A device tensor that follows a list of numbers.

    Attributes:
        tensor: the numbers on the device. It stays where it is for as long as its shape
            stays: graphs hold its address.
    """

    def __init__(self, tensor: Tensor, values: list[Any] | None = None) -> None:
        self.tensor = tensor
        self._values = values
        self._on_gpu = tensor.device.type == "cuda"

    def set(self, values: list[Any]) -> None:
        """Uploads `values` if they are not those that are there.

        Raises:
            RuntimeError: they changed, and a CUDA graph is being captured, which would repeat
                the upload at every replay.
        """
        if values == self._values:
            return
        if self._on_gpu and _capturing():
            raise RuntimeError(
                "Hyperparameters changed since the last step, and a CUDA graph is being "
                "captured: call optimizer.refresh_hyperparameters() before the capture."
            )
        host = on_host(values, self.tensor.dtype)
        if self.tensor.shape != host.shape:
            self.tensor = torch.empty_like(host, device=self.tensor.device)
        # Pinned memory lets the copy overlap; torch keeps it alive until it has been read.
        self.tensor.copy_(host.pin_memory() if self._on_gpu else host, non_blocking=True)
        self._values = values


class UploadedInGraphs(Uploaded):
    """As `Uploaded`, but a captured graph repeats the upload at every replay.

    So the graph does not depend on what steps outside it left in the tensor.
    """

    def __init__(self, tensor: Tensor, values: list[Any]) -> None:
        super().__init__(tensor, values)
        # A graph reads its source at every replay: allocated before the capture, kept after.
        self._staging = _pinned_like(tensor) if self._on_gpu else None
        self._in_graphs: list[Tensor] = []

    def set(self, values: list[Any]) -> None:
        """Uploads `values`: into a graph always, outside only if they changed.

        Raises:
            RuntimeError: two graphs were captured with no step between them.
        """
        if not self._on_gpu:
            super().set(values)
        elif _capturing():
            if self._staging is None:
                raise RuntimeError(
                    "Run one step of this optimizer outside a CUDA graph before capturing another."
                )
            self._staging.copy_(on_host(values, self.tensor.dtype))
            self.tensor.copy_(self._staging, non_blocking=True)
            self._in_graphs.append(self._staging)
            self._staging = self._values = None
        else:
            super().set(values)
            if self._staging is None:
                self._staging = _pinned_like(self.tensor)


def _capturing() -> bool:
    return torch.cuda.is_current_stream_capturing()


def _pinned_like(tensor: Tensor) -> Tensor:
    return torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu", pin_memory=True)
