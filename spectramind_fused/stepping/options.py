"""The options that our classes add to a parameter group, and what they are called there.

A group holds them only where they are on: with all of them off it is torch's, key by key. Their
names are ours alone; other libraries keep a `lookahead_k` of their own in the groups they wrap.
"""

from __future__ import annotations

from numbers import Integral
from typing import Any, NamedTuple

import torch

from spectramind_fused.stepping.algorithm import Group

LOOKAHEAD_K = "spectramind_lookahead_k"
LOOKAHEAD_ALPHA = "spectramind_lookahead_alpha"
EMA_DECAY = "spectramind_ema_decay"
EMA_DTYPE = "spectramind_ema_dtype"
STATE_DTYPE = "spectramind_state_dtype"
LOW_PRECISION_MIN_SIZE = "spectramind_low_precision_min_size"
MASTER_WEIGHTS = "spectramind_master_weights"
STOCHASTIC_ROUNDING = "spectramind_stochastic_rounding"
SEED = "spectramind_seed"
KEYS = (
    LOOKAHEAD_K, LOOKAHEAD_ALPHA, EMA_DECAY, EMA_DTYPE, STATE_DTYPE, LOW_PRECISION_MIN_SIZE,
    MASTER_WEIGHTS, STOCHASTIC_ROUNDING, SEED,
)  # fmt: skip

# Options that switch nothing on by themselves.
ALONE = {"low_precision_min_size": LOW_PRECISION_MIN_SIZE, "seed": SEED}

# In what everything is stored: a checkpoint does not decide on that.
STORAGE_KEYS = KEYS[3:]

_EMA_DTYPES = ("float32", "bfloat16")
_STATE_DTYPES = ("float32", "bfloat16", "int8")
_MASTERS = ("split", "float32")


class Options(NamedTuple):
    """Those of one group, under the names of the constructor's arguments.

    Attributes:
        lookahead_k: the period of Lookahead; 0 for none.
        lookahead_alpha: how far the slow weights go.
        ema_decay: of the averaged weights; None for none.
        ema_dtype: of averaged and slow weights; None: as without this option.
        state_dtype: of the moments; None: as torch has them.
        low_precision_min_size: tensors of fewer elements keep their state in float32.
        master_weights: what is kept beside a 16-bit parameter: "split", "float32" or None.
        stochastic_rounding: whether everything of 16 bits is rounded so.
        seed: of the random bits.
    """

    lookahead_k: Any = 0
    lookahead_alpha: Any = 0.5
    ema_decay: Any = None
    ema_dtype: Any = None
    state_dtype: Any = None
    low_precision_min_size: Any = 4096
    master_weights: Any = None
    stochastic_rounding: Any = False
    seed: Any = 0

    @classmethod
    def of(cls, group: Group) -> Options:
        """Of a group; what it does not hold is off."""
        return cls(*map(group.get, KEYS, cls()))

    @property
    def sizes(self) -> bool:
        """Whether it matters how large a tensor is."""
        return self.ema_dtype is not None or self.state_dtype is not None

    @property
    def draws(self) -> bool:
        """Whether anything may be rounded by random bits."""
        names = {name_of(self.ema_dtype), name_of(self.state_dtype)}
        return bool(self.stochastic_rounding) or not names <= {None, "float32"}

    def of_storage(self) -> tuple[Any, ...]:
        """What decides in what everything is stored."""
        return tuple(map(name_of, self[3:]))

    def entries(self, defaults: Group) -> Group:
        """What a group holds of them: what is on, and what `defaults` would switch on if unsaid.

        Dtypes are held by their names, which every file format knows.
        """
        lookahead = self.lookahead_k != 0
        named = self._replace(
            ema_dtype=name_of(self.ema_dtype),
            state_dtype=name_of(self.state_dtype),
            master_weights=name_of(self.master_weights),
        )
        on = [
            lookahead,
            lookahead,
            self.ema_decay is not None,
            self.ema_dtype is not None,
            self.state_dtype is not None,
            self.sizes,
            self.master_weights is not None,
            bool(self.stochastic_rounding),
            self.draws,
        ]
        rows = zip(KEYS, named, on, strict=True)
        return {key: value for key, value, held in rows if held or key in defaults}

    def check(self) -> None:
        """Refuses what is out of range.

        Raises:
            ValueError: says which, and what it may be.
        """
        k, alpha, decay = self.lookahead_k, self.lookahead_alpha, self.ema_decay
        if not _is_count(k):
            raise ValueError(f"Invalid lookahead_k {k!r}: give a whole number, 0 to switch it off.")
        if not 0.0 <= alpha <= 1.0:
            raise ValueError(f"Invalid lookahead_alpha {alpha!r}: give a number from 0 to 1.")
        if decay is not None and not 0.0 <= decay <= 1.0:
            raise ValueError(
                f"Invalid ema_decay {decay!r}: give a number from 0 to 1, None to switch it off."
            )
        _check_name("ema_dtype", self.ema_dtype, _EMA_DTYPES)
        _check_name("state_dtype", self.state_dtype, _STATE_DTYPES)
        _check_name("master_weights", self.master_weights, _MASTERS)
        if not _is_count(self.low_precision_min_size):
            raise ValueError(
                f"Invalid low_precision_min_size {self.low_precision_min_size!r}: give a whole "
                "number of elements."
            )
        if not isinstance(self.stochastic_rounding, bool):
            raise ValueError(
                f"Invalid stochastic_rounding {self.stochastic_rounding!r}: give True or False."
            )
        if not _is_count(self.seed) or self.seed >= 2**63:
            raise ValueError(
                f"Invalid seed {self.seed!r}: give a whole number from 0 to 2**63 - 1."
            )


def name_of(value: Any) -> Any:
    """A dtype by its name; what is no dtype as it is."""
    return str(value).removeprefix("torch.") if isinstance(value, torch.dtype) else value


def _is_count(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool) and int(value) >= 0


def _check_name(option: str, value: Any, names: tuple[str, ...]) -> None:
    if value is None or name_of(value) in names:
        return
    allowed = " or ".join(f"{name!r}" for name in names)
    raise ValueError(f"Invalid {option} {value!r}: give {allowed}, or None to switch it off.")
