"""Which parameters are kept from weight decay, by words of their names."""

from __future__ import annotations

import fnmatch
import re
import warnings
from typing import Any, NamedTuple

from torch import Tensor, nn

from spectramind_fused.config.schema import NO_DECAY_PATTERNS, AutoParamGroups

# nn.modules.batchnorm._NormBase is the base of every batch and instance norm.
_NORMS = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.modules.batchnorm._NormBase)


class Assignment(NamedTuple):
    """Where one parameter goes, and why."""

    name: str
    parameter: Tensor
    decays: bool
    why: str


def assign(model: nn.Module, config: AutoParamGroups) -> list[Assignment]:
    """Decides for each trainable parameter of a model whether it decays.

    In words: parameters of torch's norm modules do not decay, nor do vectors of a module
    whose class is named a norm, nor does one whose name contains a pattern as a run of whole
    words; all others do.

    Args:
        model: its named parameters are sorted; those without requires_grad are left out.
        config: patterns; `re:` starts a regular expression, `*`, `?` and `[` make a glob.
    """
    in_norm = {
        id(p): type(m).__name__
        for m in model.modules()
        for p in m.parameters(recurse=False)
        if isinstance(m, _NORMS) or (_is_vector(p) and words(type(m).__name__)[-1:] == ["norm"])
    }
    assignments = []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        pattern = next((p for p in config.patterns if matches(p, name)), None)
        if not config.enabled:
            why, decays = "auto_param_groups is off", True
        elif pattern is not None:
            why, decays = f"pattern '{pattern}'", False
        elif id(parameter) in in_norm:
            why, decays = f"in a {in_norm[id(parameter)]}", False
        else:
            why, decays = "no pattern matches", True
        assignments.append(Assignment(name, parameter, decays, why))
    return assignments


def _is_vector(parameter: Tensor) -> bool:
    """Whether a parameter holds one number per channel, as (3,) or (1, 3, 1) do."""
    return parameter.numel() == max(parameter.shape, default=1)


def param_groups(
    assignments: list[Assignment], config: AutoParamGroups, weight_decay: float | None
) -> list[dict[str, Any]]:
    """Parameter groups for a torch optimizer, with parameter names; empty ones are left out.

    Warns of empty groups, and of the user's own patterns that match nothing.
    """
    decaying = [(a.name, a.parameter) for a in assignments if a.decays]
    exempt = [(a.name, a.parameter) for a in assignments if not a.decays]
    if not config.enabled:
        return [{"params": decaying}]
    # The shipped list serves many models; a pattern of the user's own was meant to match.
    own = [p for p in config.patterns if p not in NO_DECAY_PATTERNS]
    idle = [p for p in own if not any(matches(p, a.name) for a in assignments)]
    if idle:
        warnings.warn(
            f"optimizer.auto_param_groups.no_decay_patterns: {', '.join(map(repr, idle))} "
            "matched no parameter.",
            stacklevel=2,
        )
    groups = []
    for name, params, decay in (
        ("decay", decaying, weight_decay),
        ("no_decay", exempt, config.no_decay),
    ):
        if params:
            groups.append({"params": params} | ({} if decay is None else {"weight_decay": decay}))
        else:
            warnings.warn(f"optimizer.auto_param_groups: the group {name} is empty.", stacklevel=2)
    return groups


def matches(pattern: str, name: str) -> bool:
    """Whether a no-decay pattern matches a parameter's name, word by word."""
    if pattern.startswith("re:"):
        return re.search(pattern[3:], name) is not None
    if any(sign in pattern for sign in "*?["):
        return fnmatch.fnmatchcase(name, pattern)
    wanted, found = words(pattern), words(name)
    return bool(wanted) and any(
        found[i : i + len(wanted)] == wanted for i in range(len(found) - len(wanted) + 1)
    )


def words(name: str) -> list[str]:
    """The lower-case words of a name, split at `.`, `_`, `-`, digits and capitals.

    `LayerNorm` gives layer, norm; `ln_1` ln; `rmsnorm` rms, norm; `batchnorm2d` batch, norm.
    """
    name = re.sub(r"\d+[dD]?(?![a-zA-Z])|\d+", " ", name)
    found = re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)
    kinds = r"\b(layer|batch|group|instance|rms)(norm)\b"
    return re.sub(kinds, r"\1 \2", " ".join(found).lower()).split()
