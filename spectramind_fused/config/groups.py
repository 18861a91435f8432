"""Which parameters are kept from weight decay, or from Muon, by words of their names."""

from __future__ import annotations

import fnmatch
import re
import warnings
from typing import Any, NamedTuple

from torch import Tensor, nn

from spectramind_fused.config.schema import (
    ADAMW_PATTERNS,
    NO_DECAY_PATTERNS,
    AdamWGroups,
    AutoParamGroups,
)

# nn.modules.batchnorm._NormBase is the base of every batch and instance norm.
# nn.modules.conv._ConvNd is the base of every convolution: of 3 x 3 no matrix is made.
_NOT_FOR_MUON = {
    "of an embedding": (nn.Embedding, nn.EmbeddingBag),
    "of a convolution": (nn.modules.conv._ConvNd,),
}
_NORMS = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.modules.batchnorm._NormBase)


class Assignment(NamedTuple):
    """Where one parameter goes, and why.

    Attributes:
        name: of the parameter.
        parameter: itself.
        decays: whether its weights decay.
        why: they do, or not.
        why_adamw: AdamW steps it and not Muon; empty where the optimizer does.
    """

    name: str
    parameter: Tensor
    decays: bool
    why: str
    why_adamw: str = ""


def assign(
    model: nn.Module, config: AutoParamGroups, adamw: AdamWGroups | None = None
) -> list[Assignment]:
    """Decides for each trainable parameter of a model whether it decays.

    In words: parameters of torch's norm modules do not decay, nor do vectors of a module
    whose class is named a norm, nor does one whose name contains a pattern as a run of whole
    words; all others do.

    Args:
        model: its named parameters are sorted; those without requires_grad are left out.
        config: patterns; `re:` starts a regular expression, `*`, `?` and `[` make a glob.
        adamw: what is not for Muon: whatever is no matrix, is in an embedding, or has a name that
            contains one of its patterns; None where the optimizer steps everything.
    """
    in_norm = {
        id(p): type(m).__name__
        for m in model.modules()
        for p in m.parameters(recurse=False)
        if isinstance(m, _NORMS) or (_is_vector(p) and words(type(m).__name__)[-1:] == ["norm"])
    }
    in_others = {
        id(p): kind
        for kind, classes in _NOT_FOR_MUON.items()
        for m in model.modules()
        if isinstance(m, classes)
        for p in m.parameters(recurse=False)
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
        why_adamw = "" if adamw is None else _why_adamw(name, parameter, adamw, in_others)
        assignments.append(Assignment(name, parameter, decays, why, why_adamw))
    return assignments


def _why_adamw(name: str, parameter: Tensor, config: AdamWGroups, in_others: dict[int, str]) -> str:
    """Why a parameter is not for Muon; empty where it is."""
    dims = parameter.dim()
    if not (dims == 2 or (dims > 2 and config.batched)):
        return f"{dims} dimension{'' if dims == 1 else 's'}"
    if id(parameter) in in_others:
        return in_others[id(parameter)]
    pattern = next((p for p in config.patterns if matches(p, name)), None)
    return "" if pattern is None else f"pattern '{pattern}'"


def _is_vector(parameter: Tensor) -> bool:
    """Whether a parameter holds one number per channel, as (3,) or (1, 3, 1) do."""
    return parameter.numel() == max(parameter.shape, default=1)


def param_groups(
    assignments: list[Assignment],
    config: AutoParamGroups,
    weight_decay: float | None,
    adamw: AdamWGroups | None = None,
) -> list[dict[str, Any]]:
    """Parameter groups for a torch optimizer, with parameter names; empty ones are left out.

    Warns of empty groups, and of the user's own patterns that match nothing.
    """
    if config.enabled:
        _warn_of_idle("auto_param_groups.no_decay_patterns", config.patterns, NO_DECAY_PATTERNS,
                      assignments)  # fmt: skip
        for name, wanted in (("decay", True), ("no_decay", False)):
            if all(a.decays != wanted for a in assignments):
                warnings.warn(
                    f"optimizer.auto_param_groups: the group {name} is empty.", stacklevel=2
                )
    kinds: list[tuple[bool, dict[str, Any]]] = [(False, {})]
    if adamw is not None:
        if all(a.why_adamw for a in assignments):
            warnings.warn(
                "optimizer: no parameter is for Muon, and AdamW steps them all: see "
                "optimizer.adamw.patterns, and optimizer.batched for stacks of matrices.",
                stacklevel=2,
            )
        _warn_of_idle("adamw.patterns", adamw.patterns, ADAMW_PATTERNS, assignments)
        kinds.append((True, {"use_muon": False, **adamw.values}))
    groups = []
    for by_adamw, values in kinds:
        decay = values.get("weight_decay") if by_adamw else weight_decay
        for decays, own in ((True, decay), (False, config.no_decay)):
            params = [
                (a.name, a.parameter)
                for a in assignments
                if bool(a.why_adamw) == by_adamw and a.decays == decays
            ]
            decayed = {} if own is None or not config.enabled else {"weight_decay": own}
            if params:
                groups.append({"params": params, **values, **decayed})
    return groups


def _warn_of_idle(
    key: str, patterns: tuple[str, ...], shipped: tuple[str, ...], assignments: list[Assignment]
) -> None:
    """The shipped list serves many models; a pattern of the user's own was meant to match."""
    own = [p for p in patterns if p not in shipped]
    idle = [p for p in own if not any(matches(p, a.name) for a in assignments)]
    if idle:
        warnings.warn(
            f"optimizer.{key}: {', '.join(map(repr, idle))} matched no parameter.", stacklevel=3
        )


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
