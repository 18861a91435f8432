"""A process that was forked from one with native threads: it has none of them, and must not wait.

Torch's operators and our kernels share work among OpenMP's threads. A child inherits the belief
that they are there, and its first larger operator waits for them for ever.
"""

from __future__ import annotations

import os
import threading

import torch

_left_behind = False


def _look_for_threads() -> None:
    """Before a fork: whether there are threads that Python did not start."""
    global _left_behind
    try:
        count = len(os.listdir("/proc/self/task"))
    except OSError:  # no Linux: there may be some
        count = 1 << 30
    _left_behind = count > threading.active_count()


def _forget() -> None:
    global _left_behind
    _left_behind = False


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_look_for_threads, after_in_parent=_forget)


def settle() -> None:
    """Lets torch go on with one thread where the others were left behind in the parent."""
    if _left_behind:
        torch.set_num_threads(1)
        _forget()
