"""The options that our classes add to a parameter group, and what they are called there.

A group holds them only where they are on: with all of them off it is torch's, key by key. Their
names are ours alone; other libraries keep a `lookahead_k` of their own in the groups they wrap.
"""

from __future__ import annotations

from numbers import Integral
from typing import Any, NamedTuple

from spectramind_fused.stepping.algorithm import Group

LOOKAHEAD_K = "spectramind_lookahead_k"
LOOKAHEAD_ALPHA = "spectramind_lookahead_alpha"
EMA_DECAY = "spectramind_ema_decay"
KEYS = (LOOKAHEAD_K, LOOKAHEAD_ALPHA, EMA_DECAY)


class Options(NamedTuple):
    """Those of one group, under the names of the constructor's arguments.

    Attributes:
        lookahead_k: the period of Lookahead; 0 for none.
        lookahead_alpha: how far the slow weights go.
        ema_decay: of the averaged weights; None for none.
    """

    lookahead_k: Any = 0
    lookahead_alpha: Any = 0.5
    ema_decay: Any = None

    @classmethod
    def of(cls, group: Group) -> Options:
        """Of a group; what it does not hold is off."""
        return cls(*map(group.get, KEYS, cls()))

    def entries(self, defaults: Group) -> Group:
        """What a group holds of them: what is on, and what `defaults` would switch on if unsaid."""
        on = [self.lookahead_k != 0, self.lookahead_k != 0, self.ema_decay is not None]
        rows = zip(KEYS, self, on, strict=True)
        return {key: value for key, value, held in rows if held or key in defaults}

    def check(self) -> None:
        """Refuses what is out of range.

        Raises:
            ValueError: says which, and what it may be.
        """
        k, alpha, decay = self
        if not isinstance(k, Integral) or isinstance(k, bool) or k < 0:
            raise ValueError(f"Invalid lookahead_k {k!r}: give a whole number, 0 to switch it off.")
        if not 0.0 <= alpha <= 1.0:
            raise ValueError(f"Invalid lookahead_alpha {alpha!r}: give a number from 0 to 1.")
        if decay is not None and not 0.0 <= decay <= 1.0:
            raise ValueError(
                f"Invalid ema_decay {decay!r}: give a number from 0 to 1, None to switch it off."
            )
