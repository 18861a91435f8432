"""Ctrl-C and SIGTERM: a run ends after the step it is in, and its last epoch stays."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_PATIENCE = 1.0  # seconds: a second signal within them is the first one once more


class Interrupted(BaseException):
    """The program was asked to end. Like KeyboardInterrupt it is no Exception.

    Attributes:
        signum: of the signal that asked.
        told: what became of the run; empty where there is nothing to say.
    """

    def __init__(self, signum: int, told: str = "") -> None:
        super().__init__(signum, told)
        self.signum, self.told = signum, told

    @property
    def status(self) -> int:
        """What the program is to end with: 130 for Ctrl-C, 143 for SIGTERM."""
        return 128 + self.signum


class Deferred:
    """Notes in its `with` block that a signal came, until somebody asks; a later one ends at once.

    Outside of the main thread, where Python takes no signals, it does nothing.

    Attributes:
        asked: the number of the signal; 0 while there was none.
    """

    def __init__(self) -> None:
        self.asked = 0
        self._since = 0.0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Deferred:
        self._before = _installed(self._note)
        return self

    def __exit__(self, *_: object) -> None:
        _restore(self._before)

    def raise_if_asked(self) -> None:
        """Ends the run here, if it was asked to end.

        Raises:
            Interrupted: it was.
        """
        if self.asked:
            raise Interrupted(self.asked)

    def _note(self, signum: int, _: object) -> None:
        if self.asked and monotonic() - self._since > _PATIENCE:
            raise Interrupted(signum)
        self.asked, self._since = self.asked or signum, self._since or monotonic()


@contextmanager
def handed_on() -> Iterator[list[int]]:
    """Leaves signals to the processes that this one has started, which then end by themselves.

    Where none is left to end by itself, `Interrupted` is raised here. Gives the numbers of the
    signals that came: one that still starts may end with an error instead.
    """
    came: list[int] = []

    def hand_on(signum: int, _: object) -> None:
        came.append(signum)
        children = multiprocessing.active_children()
        if not children:
            raise Interrupted(signum)
        for child in children:
            if child.pid is not None:
                os.kill(child.pid, signum)

    before = _installed(hand_on)
    try:
        yield came
    finally:
        _restore(before)


@contextmanager
def raised() -> Iterator[None]:
    """Raises `Interrupted` wherever a signal arrives."""

    def end(signum: int, _: object) -> None:
        raise Interrupted(signum)

    before = _installed(end)
    try:
        yield
    finally:
        _restore(before)


def _installed(handler: Callable[[int, object], None]) -> dict[int, Any]:
    """Handles both signals; returns what handled them before."""
    if threading.current_thread() is not threading.main_thread():
        return {}
    return {each: signal.signal(each, handler) for each in _SIGNALS}


def _restore(handlers: dict[int, Any]) -> None:
    for signum, handler in handlers.items():
        signal.signal(signum, handler)
