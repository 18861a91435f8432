"""In what a parameter, its states and its weights are stored, and the entries that hold it.

A state of 8 bits has other entries than torch's, `exp_avg_codes` and `exp_avg_scales`: whoever
takes codes for values fails at once. What is kept beside a 16-bit parameter is an entry of its
state, too. Every tensor here is as its parameter: of its shape, split over ranks like it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from spectramind_fused.multi_tensor import is_dense, relaid
from spectramind_fused.multi_tensor.storages import (
    GROUP,
    MASTER,
    PIECE,
    SIGNED8,
    SPLIT,
    STOCHASTIC,
    UNSIGNED8,
    AnyStorage,
    Beside,
    Storage,
    beside_of,
    dtype_of,
)
from spectramind_fused.stepping.algorithm import Algorithm, Group
from spectramind_fused.stepping.options import EMA_DTYPE, STATE_DTYPE, Options, name_of
from spectramind_fused.stepping.rounding import narrow, widen
from spectramind_fused.stepping.shards import is_dtensor, is_split, local

PARAM = "param"  # the slot of the parameter, among names of states
SLOW_WEIGHTS = "slow_weights"
EMA_WEIGHTS = "ema_weights"
MASTER_WEIGHTS, REMAINDER, CHECKSUMS = "master_weights", "master_remainder", "master_checksums"
MASTERS = {MASTER_WEIGHTS, REMAINDER, CHECKSUMS}
CODES, SCALES = "_codes", "_scales"
SIXTEEN_BIT = (torch.bfloat16, torch.float16)
_EIGHT = (SIGNED8, UNSIGNED8)

State = dict[str, Any]


def keys_of(name: str, storage: AnyStorage) -> tuple[str, ...]:
    """The entries of a slot: of its own row, unless that is the parameter; of those beside it."""
    if storage in _EIGHT:
        return name + CODES, name + SCALES
    own = () if name == PARAM else (name,)
    if storage == SPLIT:
        return (*own, REMAINDER, CHECKSUMS)
    return (*own, MASTER_WEIGHTS) if storage in MASTER.values() else own


def storages_of(
    algorithm: Algorithm, group: Group, param: Tensor, state: State
) -> dict[str, AnyStorage]:
    """In what a step leaves the parameter, each state that there may be, and the weights of ours.

    Args:
        algorithm: what the optimizer's class is.
        group: of the parameter.
        param: the parameter, as the user holds it.
        state: its own. Where no option says otherwise, what is held keeps its dtype.
    """
    options = Options.of(group)
    found = {PARAM: _of_param(options, param)}
    has_master = bool(beside_of(found[PARAM]))
    computed = torch.float32 if has_master else param.dtype
    full = torch.float32 if has_master else None  # beside a master nothing stays in 16 bits unasked
    for name in algorithm.states:
        eight = UNSIGNED8 if name in algorithm.squares else SIGNED8
        asked = _asked(options.state_dtype, options, param, eight) or full
        found[name] = asked or _unasked(name, STATE_DTYPE, group, state, computed)
    for name, default in ((SLOW_WEIGHTS, computed), (EMA_WEIGHTS, average_dtype(param))):
        asked = _asked(options.ema_dtype, options, param) or full
        found[name] = asked or _unasked(name, EMA_DTYPE, group, state, default)
    return found


def average_dtype(param: Tensor) -> torch.dtype:
    """Averages are float32 at least: in 16 bits a decay near 1 would never move them."""
    return torch.float32 if param.dtype in SIXTEEN_BIT else param.dtype


def _of_param(options: Options, param: Tensor) -> AnyStorage:
    if param.dtype in SIXTEEN_BIT:
        master = name_of(options.master_weights)
        if master == "split" and param.dtype == torch.bfloat16:
            return SPLIT
        if master is not None:
            return MASTER[param.dtype]
    return _rounded(param.dtype, options)


def _asked(
    dtype: Any, options: Options, param: Tensor, eight: Storage | None = None
) -> AnyStorage | None:
    """What an option asks for; None where it does not say. Small tensors stay full."""
    if dtype is None or param.dtype not in (torch.float32, *SIXTEEN_BIT):
        return None
    name = name_of(dtype)
    if name == "float32" or param.numel() < options.low_precision_min_size:
        return torch.float32
    return eight if name == "int8" else STOCHASTIC[torch.bfloat16]


def _unasked(
    name: str, option: str, group: Group, state: State, default: torch.dtype
) -> AnyStorage:
    """What is held keeps its dtype; 16 bits only if no option has been switched off."""
    held = state.get(name)
    dtype = held.dtype if isinstance(held, Tensor) else default
    widened = dtype in SIXTEEN_BIT and option in group
    return _rounded(default if widened else dtype, Options.of(group))


def _rounded(dtype: torch.dtype, options: Options) -> AnyStorage:
    return STOCHASTIC.get(dtype, dtype) if options.stochastic_rounding else dtype


def held_storage(name: str, state: State, param: Tensor) -> AnyStorage | None:
    """In what a slot is held now; None where it is not."""
    if name == PARAM:
        if state.get(MASTER_WEIGHTS) is not None and param.dtype in MASTER:
            return MASTER[param.dtype]
        split = state.get(REMAINDER) is not None and state.get(CHECKSUMS) is not None
        return SPLIT if split and param.dtype == torch.bfloat16 else param.dtype
    codes = state.get(name + CODES)
    if codes is not None and state.get(name + SCALES) is not None:
        return UNSIGNED8 if codes.dtype == torch.uint8 else SIGNED8
    held = state.get(name)
    return held.dtype if isinstance(held, Tensor) else None


def begun(state: State, name: str) -> bool:
    """Whether a slot is held, in whatever storage."""
    return state.get(name) is not None or state.get(name + CODES) is not None


def read(name: str, state: State, param: Tensor) -> Tensor:
    """What a slot holds, as float32 (float64 as it is), laid out as its own row is."""
    storage = held_storage(name, state, param)
    assert storage is not None
    own, *beside = _rows(name, storage, state, param)
    kinds = beside_of(storage)
    like = [row for row, kind in zip(beside, kinds, strict=True) if kind.elements == 1]
    part = relaid(local(own), local(like[0])) if like else local(own)
    rows = [
        _flat(local(row))[: kind.size(part.numel())]
        for row, kind in zip(beside, kinds, strict=True)
    ]
    return _like(own, _unflat(widen(storage, _flat(part), rows), part))


def write(
    name: str,
    storage: AnyStorage,
    state: State,
    param: Tensor,
    values: Tensor,
    random: Tensor | None = None,
) -> None:
    """Stores values, in the entries of a slot; those of another storage go.

    Args:
        name: of the slot.
        storage: in what.
        state: changed in place, as are tensors in it that fit.
        param: the parameter; changed where the slot is its own.
        values: of its shape, float32, or beside a float64 parameter float64.
        random: 16 random bits for each element of this rank's part; None: to nearest.
    """
    part = relaid(local(values), _order(local(param)))
    if part.dtype == torch.float64:  # beside a float64 parameter nothing is rounded at random
        random = None
    rows = narrow(storage, _flat(part), random)
    _drop_others(name, storage, state)
    if name == PARAM:
        put(local(param), _unflat(rows.pop(0), part))
        besides: Iterable[Beside] = beside_of(storage)
    else:
        own = Beside(dtype_of(storage), 1)
        besides = (own, *beside_of(storage))
    for key, row, beside in zip(keys_of(name, storage), rows, besides, strict=True):
        held = state.get(key)
        if not _fits(held, param, beside) or (
            beside.elements == 1 and local(held).stride() != part.stride()
        ):
            held = state[key] = new_row(param, beside)
        if beside.elements == 1:
            put(local(held), _unflat(row, part))
        else:
            _flat(local(held))[: len(row)] = row


def bytes_of(
    algorithm: Algorithm, group: Group, param: Tensor, slots: Iterable[str]
) -> dict[str, int]:
    """What is held of a parameter: its own bytes, and those of each slot with what is beside it.

    Args:
        algorithm: what the optimizer's class is.
        group: of the parameter.
        param: any, with or without a state.
        slots: names of states and weights.
    """
    storages, count = storages_of(algorithm, group, param, {}), param.numel()
    return {
        name: count * dtype_of(storages[name]).itemsize
        + sum(row.size(count) * row.dtype.itemsize for row in beside_of(storages[name]))
        for name in (PARAM, *slots)
    }


def _order(part: Tensor) -> Tensor:
    """A tensor that lies like rows of a parameter do, without memory."""
    return torch.empty_like(part, device="meta", memory_format=torch.preserve_format)


def convert(name: str, storage: AnyStorage, state: State, param: Tensor) -> None:
    """Brings what is held into the storage that is wanted, onto the parameter's device.

    To nearest: nothing has been computed. What is there in that storage already stays the same
    object, if it lies like the parameter.
    """
    held = held_storage(name, state, param)
    if held is None:
        return
    entries = _entries(name, storage)
    if _same(held, storage):
        for key, _ in entries:
            state[key] = state[key].to(param.device)
        if not any(beside.elements > 1 for _, beside in entries):
            for key, _ in entries:
                state[key] = relaid(state[key], param)
        if all(_lies_like(state[key], param, beside) for key, beside in entries):
            _drop_others(name, storage, state)
            return
    elif name == PARAM and not (beside_of(held) and beside_of(storage)):
        _drop_others(name, storage, state)
        return
    values = relaid(read(name, state, param).to(param.device), param)
    if name != PARAM:
        write(name, storage, state, param, values)
        return
    # It stays as the user has it: an exact tie, which another storage rounds otherwise, moves.
    seen = local(param).detach().clone()
    rounded = narrow(storage, _flat(local(values)), None)[0]
    same = _unflat(rounded, local(values)) == seen
    moved = torch.nextafter(local(values), seen.float())
    values = _like(values, torch.where(same | seen.isnan(), local(values), moved))
    write(name, storage, state, param, values)
    put(local(param), seen)


def _same(held: AnyStorage, storage: AnyStorage) -> bool:
    return held == storage or (storage in STOCHASTIC.values() and dtype_of(storage) == held)


def _drop_others(name: str, storage: AnyStorage, state: State) -> None:
    for key in entries_of(name) - set(keys_of(name, storage)):
        state.pop(key, None)


def begin_master(storage: AnyStorage, state: State, param: Tensor) -> None:
    """Makes what is missing beside the parameter: a copy of it, or an empty remainder."""
    for key, beside in _entries(PARAM, storage):
        if state.get(key) is None:
            row = new_row(param, beside)
            state[key] = row.copy_(param.detach()) if key == MASTER_WEIGHTS else row


def entries_of(name: str) -> set[str]:
    """Every entry that a slot may have."""
    return MASTERS if name == PARAM else {name, name + CODES, name + SCALES}


def holds_many(key: str) -> bool:
    """Whether a value of an entry is of many elements, so that it is of another shape."""
    return key == CHECKSUMS or key.endswith(SCALES)


def _entries(name: str, storage: AnyStorage) -> list[tuple[str, Beside]]:
    own = [] if name == PARAM else [Beside(dtype_of(storage), 1)]
    return list(zip(keys_of(name, storage), [*own, *beside_of(storage)], strict=True))


def misfit(name: str, storage: AnyStorage, state: State, param: Tensor) -> str | None:
    """The first entry of a slot that does not fit the parameter; None where all do."""
    entries = _entries(name, storage)
    return next((key for key, b in entries if not _has_form(state.get(key), param, b)), None)


def may_be_of(key: str, value: Tensor, param: Tensor) -> bool:
    """Whether an entry has the shape it has beside a parameter, or may have beside a DTensor."""
    if not holds_many(key):
        return value.shape == param.shape
    row = Beside(value.dtype, PIECE if key == CHECKSUMS else GROUP)
    return is_dtensor(param) or value.shape == (row.size(param.numel()),)


def in_place(name: str, storage: AnyStorage, state: State, param: Tensor) -> bool:
    """Whether a slot is held in a storage, as kernels need it."""
    held = held_storage(name, state, param)
    others = entries_of(name) - set(keys_of(name, storage))
    if held is None or not _same(held, storage) or others & state.keys():
        return False
    return all(_lies_like(state.get(key), param, b) for key, b in _entries(name, storage))


def _rows(name: str, storage: AnyStorage, state: State, param: Tensor) -> list[Tensor]:
    own = [param.detach()] if name == PARAM else []
    return [*own, *(state[key] for key in keys_of(name, storage))]


def new_row(param: Any, beside: Beside) -> Tensor:
    """Zeros: one for each element, laid out like the parameter, or one for each so many.

    Of a parameter that is split over ranks, each rank has a line of them for its own part, as long
    as the largest part needs: so they are split evenly, and a checkpoint of another number of
    ranks, whose groups began elsewhere, has another shape and is not taken for one of this.
    """
    if beside.elements == 1:
        return torch.zeros_like(param, dtype=beside.dtype, memory_format=torch.preserve_format)
    if not is_dtensor(param):
        return torch.zeros(beside.size(param.numel()), dtype=beside.dtype, device=param.device)
    from torch.distributed.tensor import DTensor, Replicate, Shard

    placements = [Shard(0) if is_split(p) else Replicate() for p in param.placements]
    count = beside.size(_largest_part(param))
    rows = torch.zeros(1, count, dtype=beside.dtype, device=local(param).device)
    return DTensor.from_local(rows, param.device_mesh, placements, run_check=False)


def _largest_part(param: Any) -> int:
    """Elements of the largest part that a rank holds: the first rank's."""
    shape = list(param.shape)
    for size, placement in zip(param.device_mesh.shape, param.placements, strict=True):
        if is_split(placement):
            shape[placement.dim] = -(-shape[placement.dim] // size)
    return torch.Size(shape).numel()


def _has_form(row: Any, param: Tensor, beside: Beside) -> bool:
    if not isinstance(row, Tensor) or row.dtype != beside.dtype:
        return False
    if beside.elements == 1:
        return row.shape == param.shape
    if not is_dtensor(param):
        return row.shape == (beside.size(param.numel()),)
    held: Tensor = local(row)
    return held.shape == (1, beside.size(_largest_part(param)))


def _fits(row: Any, param: Tensor, beside: Beside) -> bool:
    if not _has_form(row, param, beside) or row.device != param.device:
        return False
    return is_dtensor(row) == is_dtensor(param)


def _lies_like(row: Any, param: Tensor, beside: Beside) -> bool:
    if not _fits(row, param, beside) or row.is_neg():
        return False
    return beside.elements > 1 or local(row).stride() == local(param).stride()


def _flat(tensor: Tensor) -> Tensor:
    """The elements in the order in which they lie in memory, where they are dense."""
    tensor = tensor.detach().resolve_neg()
    if is_dense(tensor):
        return tensor.as_strided((tensor.numel(),), (1,))
    return tensor.reshape(-1)


def _unflat(values: Tensor, like: Tensor) -> Tensor:
    if is_dense(like):
        return values.as_strided(like.shape, like.stride())
    return values.view(like.shape)


def _like(whole: Tensor, part: Tensor) -> Tensor:
    """This rank's part as a DTensor, where `whole` is one."""
    if not is_dtensor(whole):
        return part
    from torch.distributed.tensor import DTensor

    spec: Any = whole
    return DTensor.from_local(
        part, spec.device_mesh, spec.placements, run_check=False,
        shape=whole.shape, stride=whole.stride(),
    )  # fmt: skip


def put(tensor: Tensor, values: Tensor) -> None:
    """As copy_, which leaves the wrong sign in a 16-bit tensor that is negated when read."""
    if tensor.is_neg():
        torch._neg_view(tensor).copy_(-values)
    else:
        tensor.copy_(values)
