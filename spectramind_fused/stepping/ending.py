"""The end of the process while a thread is in a step.

A daemon thread that comes back from one of torch's operators to a Python that is going down aborts
the process. So before it goes down the step is waited for, and the thread never enters another.
"""

from __future__ import annotations

import atexit
import os
import threading
import time
import weakref
from typing import Any

_SECONDS = 30.0  # for all steps that are under way; behind them a process ends as it may
_ON_THE_WAY = 0.05  # for who is between two steps: torch's wrapper of step() has operators, too

_steppers: weakref.WeakSet[Any] = weakref.WeakSet()
_ended_by: int | None = None  # the thread that ends the process


def watch(optimizer: Any) -> None:
    """Lets the end of the process wait for the steps of an optimizer, whose lock is `_in_step`."""
    _steppers.add(optimizer)


def _end() -> None:
    global _ended_by
    _ended_by = threading.get_ident()
    until = time.monotonic() + _SECONDS
    for optimizer in list(_steppers):
        optimizer._in_step.acquire(timeout=max(0.0, until - time.monotonic()))  # for good
    if threading.active_count() > 1:
        time.sleep(_ON_THE_WAY)


def may_step() -> bool:
    """Whether an optimizer whose lock is taken may step all the same.

    At the end of the process the thread that ends it may, and any other does not come back.
    """
    if _ended_by is None:
        return False
    if _ended_by != threading.get_ident():
        threading.Event().wait()
    return True


def _forget() -> None:
    """In a child: who was in a step there is not here."""
    _steppers.clear()


atexit.register(_end)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
