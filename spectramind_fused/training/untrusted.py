"""Whether a file holds what a checkpoint of a run does, found before any of it is used.

A checkpoint comes from anywhere. `torch.load(weights_only=True)` runs no code of it; what it may do
all the same is take all memory or all time, or hold other things than a run needs.
"""

from __future__ import annotations

import math
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import Tensor

_MOST_VALUES = 1_000_000  # in lists and dicts; tensors count as one
_DEEPEST = 50
_OF_THE_RUN = ("foreach", "fused")  # the live ones stay
_OURS = "spectramind_"  # checked where they are loaded


def check_file(path: Path) -> None:
    """Checks the archive before it is unpacked.

    Raises:
        ValueError: it is none of torch's, holds more than it takes on the disk, or is damaged.
    """
    if not zipfile.is_zipfile(path):
        raise ValueError("it is no archive of torch.save")
    with zipfile.ZipFile(path) as archive:
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
            raise ValueError("it is compressed, as torch.save writes none")
        if (damaged := archive.testzip()) is not None:  # torch.load compares no checksums
            raise ValueError(f"{damaged} in it is damaged")


def check_content(content: Any) -> None:
    """Checks what the keys of a checkpoint hold.

    Raises:
        ValueError: something has another type, has no end, or is larger than its storage.
    """
    if not isinstance(content, dict):
        raise ValueError(f"it holds {_kind(content)} instead of a run")
    for value in _values(content):
        if isinstance(value, Tensor) and value.nbytes > value.untyped_storage().nbytes():
            raise ValueError("a tensor is larger than what is stored of it")
    for key in ("model", "optimizer", "config"):
        _is(content, key, dict)
    _is(content["optimizer"], "state", dict)
    _is(content["optimizer"], "param_groups", list)
    _is(content, "scheduler", (dict, type(None)))
    _is(content, "epoch", int)
    if isinstance(content["epoch"], bool) or content["epoch"] < 0:
        raise ValueError(f"its epoch is {content['epoch']}")
    if not isinstance(content.get("steps"), (int, type(None))):
        raise ValueError(f"its 'steps' is {_kind(content['steps'])}")
    _is(content, "rng", Tensor)
    _is(content, "cuda_rng", (Tensor, type(None)))


def check_like(given: Any, own: Any, name: str) -> None:
    """Checks that plain values have the form of one's own: keys, lengths, types, finite numbers.

    Raises:
        ValueError: names what has not.
    """
    numbers = (int, float)
    if isinstance(own, dict):
        if not isinstance(given, dict) or given.keys() != own.keys():
            raise ValueError(f"{name} has other entries")
        for key in own:
            check_like(given[key], own[key], f"{name}.{key}")
    elif isinstance(own, (list, tuple)):
        if not isinstance(given, (list, tuple)) or len(given) != len(own):
            raise ValueError(f"{name} is no list of {len(own)}")
        for i, (one, mine) in enumerate(zip(given, own, strict=True)):
            check_like(one, mine, f"{name}[{i}]")
    elif isinstance(own, numbers) and not isinstance(own, bool):
        number = isinstance(given, numbers) and not isinstance(given, bool)
        if not number or not math.isfinite(given):
            raise ValueError(f"{name} is {_kind(given)} instead of a finite number")
    elif type(given) is not type(own):
        raise ValueError(f"{name} is {_kind(given)} instead of {_kind(own)}")


def check_groups(given: list[Any], own: list[dict[str, Any]]) -> None:
    """Checks that saved parameter groups have options of the kind that one's own have.

    Raises:
        ValueError: names what has not.
    """
    for i, (group, mine) in enumerate(zip(given, own, strict=False)):  # torch counts them
        if not isinstance(group, dict):
            raise ValueError(f"its parameter group {i} is {_kind(group)}")
        for key, value in mine.items():
            if key not in group or key == "params" or key in _OF_THE_RUN or key.startswith(_OURS):
                continue
            name = f"{key} of its parameter group {i}"
            if isinstance(value, bool) and group[key] is not value:
                raise ValueError(f"{name} is {_kind(group[key])} and was {value}")
            check_like(group[key], value, name)


def _is(holder: dict[str, Any], key: str, kind: Any) -> None:
    if key not in holder:
        raise ValueError(f"it has no {key!r}")
    if not isinstance(holder[key], kind):
        raise ValueError(f"its {key!r} is {_kind(holder[key])}")


def _kind(value: Any) -> str:
    return f"a {type(value).__name__}" if not isinstance(value, float) else repr(value)


def _values(content: Any) -> Iterator[Any]:
    """Everything in it, each as often as it is reached, which is counted."""
    left = [(content, 0)]
    count = 0
    while left:
        value, depth = left.pop()
        count += 1
        if count > _MOST_VALUES or depth > _DEEPEST:
            raise ValueError("it holds more values than any run has")
        yield value
        if isinstance(value, dict):
            left += [(inner, depth + 1) for pair in value.items() for inner in pair]
        elif isinstance(value, (list, tuple, set)):
            left += [(inner, depth + 1) for inner in value]
