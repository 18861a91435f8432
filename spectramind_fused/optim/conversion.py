"""What users, other libraries and version 0.1 write, turned into what a group of ours holds."""

from __future__ import annotations

from typing import Any

import torch

from spectramind_fused.stepping.algorithm import Algorithm, Group
from spectramind_fused.stepping.options import KEYS, LOOKAHEAD_ALPHA, LOOKAHEAD_K, Options
from spectramind_fused.stepping.state import LOOKAHEAD_STEP
from spectramind_fused.stepping.storage import SLOW_WEIGHTS

# timm's Lookahead keeps these in the groups of the optimizer that it wraps, and its slow weights in
# the states.
_TIMMS = ("lookahead_k", "lookahead_alpha", "lookahead_step")
_TIMMS_SLOW_WEIGHTS = "lookahead_slow_buff"


def use_own_names(group: Group, defaults: Group) -> Group:
    """Gives options that are named as in the constructor the names they have in groups.

    Args:
        group: changed in its place; a wrapper's own entries of the same names are left alone.
        defaults: of the optimizer.

    Returns:
        The group.

    Raises:
        ValueError: an option is out of range; the group is as it was.
    """
    names = dict(zip(Options._fields, KEYS, strict=True))
    given = {key: group[name] for name, key in names.items() if name in group}
    if given and not _is_timms(group):
        options = Options.of({**defaults, **group, **given})
        options.check()
        for name in names.keys() & group.keys():
            del group[name]
        group.update(options.entries(defaults))
    return group


def of_this_version(state: dict[str, Any]) -> dict[str, Any]:
    """The pickled state of an optimizer, also where version 0.1 wrote it."""
    state = dict(state)
    if "backend" in state:
        state["_backend"] = state.pop("backend")
    if state.pop("_ours", None) is not None:
        state["defaults"] = use_own_names(dict(state["defaults"]), {})
    state["param_groups"] = _with_own_names(state["param_groups"])
    return state


def converted(
    algorithm: Algorithm, live: list[Group], state_dict: dict[str, Any]
) -> dict[str, Any]:
    """A checkpoint in this version's names; that of timm's Lookahead in ours, where ours is on.

    Args:
        algorithm: what the optimizer's class is.
        live: its groups.
        state_dict: the checkpoint; left as it is.

    Raises:
        ValueError: timm's cannot be converted.
    """
    groups = _with_own_names(state_dict["param_groups"])
    state_dict = {**state_dict, "param_groups": groups}
    if algorithm.rule:
        state_dict["state"] = {k: _counted_once(v) for k, v in state_dict["state"].items()}
    if any(map(_is_timms, groups)) and not any(map(_is_timms, live)):
        return _from_timms(algorithm, live, state_dict)
    return state_dict


def _counted_once(state: Any) -> Any:
    """The state of a class that had no kernels counted for Lookahead beside torch's `step`."""
    if isinstance(state, dict) and LOOKAHEAD_STEP in state:
        return {name: value for name, value in state.items() if name != LOOKAHEAD_STEP}
    return state


def _is_timms(group: Group) -> bool:
    return group.keys() >= set(_TIMMS)


def _with_own_names(groups: list[Group]) -> list[Group]:
    """The groups, those of version 0.1 renamed: it held all our options, on or off."""
    fields = set(Options._fields)
    return [use_own_names(dict(g), {}) if g.keys() >= fields else g for g in groups]


def _from_timms(
    algorithm: Algorithm, live: list[Group], state_dict: dict[str, Any]
) -> dict[str, Any]:
    if not all(Options.of(group).lookahead_k for group in live):
        raise _not_converted(f"give {algorithm.name} a lookahead_k to go on with ours")
    groups, states = [], dict(state_dict["state"])
    for group in state_dict["param_groups"]:
        k, alpha, count = (group[name] for name in _TIMMS)
        others = {key: value for key, value in group.items() if key not in _TIMMS}
        groups.append({**others, LOOKAHEAD_K: k, LOOKAHEAD_ALPHA: alpha})
        for index in set(group["params"]) & states.keys():
            states[index] = _with_slow_weights(states[index], k, count)
    return {**state_dict, "param_groups": groups, "state": states}


def _with_slow_weights(state: dict[str, Any], k: int, count: int) -> dict[str, Any]:
    """A parameter's state; `count` is timm's, of its group."""
    state = dict(state)
    if _TIMMS_SLOW_WEIGHTS not in state:
        raise _not_converted("before a parameter's first sync it has no slow weights of it")
    state[SLOW_WEIGHTS] = state.pop(_TIMMS_SLOW_WEIGHTS)
    step = state.setdefault("step", torch.tensor(float(count)))
    if float(step) % k != count % k:
        raise _not_converted(
            f"it counts {count} steps of a group, and ours {float(step):g} of a parameter in it"
        )
    return state


def _not_converted(why: str) -> ValueError:
    return ValueError(
        f"This checkpoint is of timm's Lookahead: load it through that wrapper, around this "
        f"optimizer; {why}."
    )
