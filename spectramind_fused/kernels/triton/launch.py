"""Launches that were made before, without what Triton looks at before each.

At every launch Triton finds the variant of a kernel from its arguments and options. Arguments that
are the same have the same variant: the second launch with them goes to the compiled kernel, as
`kernel[grid](...)`, which Triton offers for that. Its hooks around a launch are still called; what
changes how it compiles (`TRITON_DEBUG`, instrumentation) must be set before the first step.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from functools import partial
from typing import Any, NamedTuple

from torch import Tensor

_MOST = 16  # ways to launch the kernels of one bucket: two or three, unless a scaler's tensors move


class Call(NamedTuple):
    """A launch.

    Attributes:
        kernel: with `triton.jit`; its compile-time arguments come last.
        grid: how many programs.
        arguments: tensors and numbers.
        constants: compile-time arguments, and options.
    """

    kernel: Any
    grid: int
    arguments: list[Any]
    constants: dict[str, Any]


class Launches:
    """What has been launched on one bucket."""

    def __init__(self) -> None:
        self._known: dict[Hashable, Callable[..., Any]] = {}

    def __call__(self, key: Hashable, make: Callable[[], Call], stream: int | None) -> None:
        """Launches a kernel.

        Args:
            key: calls of the same key have the same arguments, at the same addresses.
            make: gives the call, if it is the first.
            stream: the current one; None where only Triton knows it.
        """
        known = self._known.get(key)
        if known is not None:
            known(stream=stream)
            return
        call = make()
        compiled = call.kernel[(call.grid,)](*call.arguments, **call.constants)
        if compiled is not None:  # None of the interpreter
            names = call.kernel.arg_names[len(call.arguments) :]
            constants = (call.constants[name] for name in names)
            values = [a.data_ptr() if isinstance(a, Tensor) else a for a in call.arguments]
            if len(self._known) == _MOST:
                self._known.clear()
            self._known[key] = partial(compiled[(call.grid, 1, 1)], *values, *constants)
