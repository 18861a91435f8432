"""Matrices made nearly orthogonal: Newton-Schulz by batched products of torch, as in Muon."""

from __future__ import annotations

import math
from numbers import Real
from typing import Any

import torch
from torch import Tensor

Triple = tuple[float, float, float]

# The Polar Express (Amsel, Persson, Musco and Gower 2025, arXiv:2505.16932), the table of its
# Algorithm 1: the best polynomial of each step for singular values from 1e-3 on; the last one is
# that of every later step. Before it values are divided by 1.01, the paper's safety factor.
_SAFETY = 1.01
_POLAR_EXPRESS: tuple[Triple, ...] = (
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
    (3.3184196573706015, -2.488488024314874, 0.51004894012372),
    (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
    (1.891301407787398, -1.2679958271945868, 0.37680408948524835),
    (1.8750014808534479, -1.2500016453999487, 0.3750001645474248),
    (1.875, -1.25, 0.375),
)
POLAR_EXPRESS = "polar_express"
MOST_STEPS = 99  # as torch has it
# Elements that are multiplied at once, where one matrix has not more: the products need 10 to 12
# bytes of room for each, and gain nothing from larger batches.
MOST_ELEMENTS = 1 << 24


def check_coefficients(coefficients: Any) -> None:
    """Refuses what is no polynomial.

    Raises:
        ValueError: says what there may be.
    """
    if isinstance(coefficients, str) and coefficients == POLAR_EXPRESS:
        return
    numbers = isinstance(coefficients, tuple) and len(coefficients) == 3
    if not numbers or not all(isinstance(c, Real) and math.isfinite(c) for c in coefficients):
        raise ValueError(
            f"Invalid ns_coefficients {coefficients!r}: give three numbers, or {POLAR_EXPRESS!r}."
        )


def polynomials(coefficients: Any, steps: int) -> list[Triple]:
    """The polynomial a x + b x^3 + c x^5 of each step.

    Args:
        coefficients: three numbers for all steps, or "polar_express".
        steps: how many.
    """
    if coefficients != POLAR_EXPRESS:
        return [tuple(coefficients)] * steps
    *first, last = _POLAR_EXPRESS
    safe = [(a / _SAFETY, b / _SAFETY**3, c / _SAFETY**5) for a, b, c in first]
    return [*safe, *[last] * steps][:steps]


def at_once(matrices: Tensor) -> list[Tensor]:
    """Views of a stack of matrices that are multiplied one after the other, to save room."""
    parts = [matrices]
    for dim in range(matrices.dim() - 2):
        most = (max(1, MOST_ELEMENTS * part.shape[dim] // part.numel()) for part in parts)
        pairs = zip(parts, most, strict=True)
        parts = [piece for part, size in pairs for piece in torch.split(part, size, dim)]
    return parts


def orthogonalized(matrices: Tensor, coefficients: Any, steps: int, eps: float) -> Tensor:
    """The matrices with their singular values brought near 1, in bfloat16.

    Args:
        matrices: of shape [..., rows, columns].
        coefficients: as in `polynomials`.
        steps: of the iteration.
        eps: the least norm that a matrix is divided by.

    Source: Jordan et al., Muon: An optimizer for hidden layers in neural networks (2024).
    """
    if not matrices.numel():
        return matrices.bfloat16()
    rows, columns = matrices.shape[-2:]
    x = matrices.bfloat16().reshape(-1, rows, columns)
    if rows > columns:  # the smaller Gram matrix
        x = x.mT
    with torch.autocast(x.device.type, enabled=False):  # a user's would multiply in float16
        norm = torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True).clamp(min=eps)
        x = x / (norm * _SAFETY if coefficients == POLAR_EXPRESS else norm)
        for a, b, c in polynomials(coefficients, steps):
            gram = x @ x.mT
            x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.mT if rows > columns else x).reshape(matrices.shape)
