"""Launches of kernels that are compiled already, without what Triton looks at before each.

Triton finds a kernel's variant from its arguments and options at every launch. Here the caller says
which it is; the second launch of it goes to the compiled kernel, as `kernel[grid](...)`, which
Triton offers since 3.0.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

from torch import Tensor


class Launches:
    """The compiled kernels of one bucket."""

    def __init__(self) -> None:
        self._compiled: dict[Hashable, tuple[Any, tuple[Any, ...], dict[str, Any]]] = {}

    def __call__(
        self,
        function: Any,
        grid: tuple[int],
        arguments: Sequence[Any],
        constants: dict[str, Any],
    ) -> None:
        """Launches a kernel.

        Args:
            function: with `triton.jit`; it specializes no number, and its constants come last.
            grid: how many programs.
            arguments: tensors and numbers. Each is always on the device of the first launch.
            constants: compile-time arguments and options; the same dictionary for the same values.
        """
        addresses = [a.data_ptr() if isinstance(a, Tensor) else a for a in arguments]
        # Of a pointer Triton's variant depends on whether it is a multiple of 16.
        pointers = (a for a, given in zip(addresses, arguments, strict=True) if a is not given)
        variant = (function, id(constants), *(address % 16 == 0 for address in pointers))
        known = self._compiled.get(variant)
        if known is not None:
            kernel, of_constants, _ = known
            kernel[(*grid, 1, 1)](*addresses, *of_constants)
            return
        kernel = function[grid](*arguments, **constants)
        if kernel is not None:  # None of the interpreter
            names = function.arg_names[len(arguments) :]
            in_order = tuple(constants[name] for name in names)
            self._compiled[variant] = kernel, in_order, constants  # whose id must stay its own
