"""States that have an element for each row, and for each column, of a matrix.

They lie in the order of their parameter: a kernel finds their elements by where it is in memory.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from spectramind_fused.multi_tensor import relaid
from spectramind_fused.stepping.algorithm import Algorithm, Group
from spectramind_fused.stepping.options import Options, name_of
from spectramind_fused.stepping.storage import SIXTEEN_BIT

State = dict[str, Any]
_DIMENSIONS = (-1, -2)  # that the vectors lack, those of rows first


def shape_of(param: Tensor, dimension: int) -> tuple[int, ...]:
    """Of the vector that lacks a dimension of a parameter."""
    shape = list(param.shape)
    shape[dimension] = 1
    return tuple(shape)


def like(param: Tensor, dimension: int) -> Tensor:
    """A vector as kernels need it, without memory."""
    shape = shape_of(param, dimension)
    strides, size = [1] * len(shape), 1
    for d in sorted(range(len(shape)), key=lambda d: (param.stride(d), -d)):
        strides[d] = max(1, size)
        size *= shape[d]
    return torch.empty_strided(shape, strides, device="meta")


def dtype_of_vectors(group: Group, param: Tensor, state: State, names: tuple[str, ...]) -> Any:
    """What vectors are kept in: the dtype of their parameter.

    Beside one of 16 bits float32, where an option asks for more than 16 bits: they are small.
    """
    options = Options.of(group)
    if param.dtype not in SIXTEEN_BIT:
        return param.dtype
    asked = options.master_weights is not None or options.stochastic_rounding
    full = asked or name_of(options.state_dtype) == "float32"
    held = all(getattr(state.get(name), "dtype", None) == torch.float32 for name in names)
    return torch.float32 if full or held else param.dtype


def prepare_vectors(algorithm: Algorithm, state: State, param: Tensor, group: Group) -> None:
    """Makes them exist on the parameter's device, in its order, in one dtype."""
    if not algorithm.vectors:
        return
    dtype = dtype_of_vectors(group, param, state, algorithm.vectors)
    for name, dimension in zip(algorithm.vectors, _DIMENSIONS, strict=True):
        wanted, held = like(param, dimension), state.get(name)
        if held is None:
            held = torch.zeros((), dtype=dtype, device=param.device).expand(wanted.shape)
        elif _lies_like(held, wanted):
            wanted = held
        state[name] = relaid(held.to(param.device, dtype), wanted)


def vectors_in_place(algorithm: Algorithm, state: State, param: Tensor, group: Group) -> bool:
    """Whether kernels can move them where they are."""
    dtype = dtype_of_vectors(group, param, state, algorithm.vectors)
    held = [state.get(name) for name in algorithm.vectors]
    return all(
        isinstance(vector, Tensor)
        and vector.dtype == dtype
        and vector.device == param.device
        and not vector.is_neg()
        and _lies_like(vector, like(param, dimension))
        for vector, dimension in zip(held, _DIMENSIONS, strict=False)
    )


def misfit_of(algorithm: Algorithm, name: str, held: Any, param: Tensor) -> str:
    """What a vector is that does not fit a parameter; empty where it does."""
    if not isinstance(held, Tensor):
        return f"a {type(held).__name__} and no tensor"
    wanted = shape_of(param, _DIMENSIONS[algorithm.vectors.index(name)])
    if tuple(held.shape) != wanted:
        return f"of shape {tuple(held.shape)} and not {wanted}"
    if held.is_meta != param.is_meta:
        return f"on {held.device}"
    return "" if held.is_floating_point() else f"{held.dtype}"


def bytes_of_vectors(algorithm: Algorithm, group: Group, param: Tensor) -> dict[str, int]:
    """What they take in memory."""
    size = dtype_of_vectors(group, param, {}, algorithm.vectors).itemsize
    return {
        name: torch.Size(shape_of(param, dimension)).numel() * size
        for name, dimension in zip(algorithm.vectors, _DIMENSIONS, strict=False)
    }


def _lies_like(held: Tensor, wanted: Tensor) -> bool:
    pairs = zip(held.shape, held.stride(), wanted.stride(), strict=True)
    return held.shape == wanted.shape and all(size <= 1 or a == b for size, a, b in pairs)
