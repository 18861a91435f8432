"""The ways in which a step looks at its tensors: all of them must notice the same."""

import functools

import pytest

from spectramind_fused.kernels import host
from spectramind_fused.stepping import fingerprint

IN_C = ["c", "c that asks"]
WAYS = [*IN_C, "python"]


def look_by(way, monkeypatch):
    """From now on every look goes this way: C, C that asks torch's methods, or Python."""
    if way == "python":
        monkeypatch.setattr(fingerprint, "can_be_read", lambda *_: False)
        return
    access = host._access.__wrapped__
    if access(None, -1, -1) is None:
        pytest.skip("there is no C++ library, or torch has no exchange table")
    if way == "c":
        assert host.tensor_layout() is not None, "this torch lays its tensors out otherwise"
    else:
        monkeypatch.setattr(host, "tensor_layout", lambda: None)
        monkeypatch.setattr(host, "_access", functools.cache(access))
