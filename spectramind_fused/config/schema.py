"""The optimizer and scheduler sections of a config, checked and typed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from spectramind_fused.config.check import ConfigError, Section, shown
from spectramind_fused.config.hyperparameters import (
    DECOUPLED,
    TYPES,
    arguments,
    read_hyperparameters,
    read_some,
)

__all__ = ["ConfigError", "OptimizerConfig", "SchedulerConfig", "parse_optimizer"]

NO_DECAY_PATTERNS = (
    "bias", "LayerNorm.weight", "layer_norm.weight", "ln", "norm", "bn", "BatchNorm.weight",
)  # fmt: skip
# Matrices that are tables of words or places, or that make the output: their columns or rows are no
# directions of one space.
ADAMW_PATTERNS = ("embed", "embedding", "embeddings", "wte", "wpe", "head")
_CONTROL = (
    "name", "type", "auto_param_groups", "adamw", "lookahead", "scheduler_hook", "warmup_steps",
    "clip_grad_norm", "accumulate_steps", "precision_safe", "bf16_preferred", "fused",
    "detect_anomaly", "log_config", "rich_console", "hash_to_debuglog", "export_json",
    "decoupled", "gradient_centralization", "adaptive_weight_decay", "notes",
)  # fmt: skip


@dataclass(frozen=True)
class AutoParamGroups:
    """Which parameters are kept from weight decay."""

    enabled: bool
    patterns: tuple[str, ...]
    no_decay: float


@dataclass(frozen=True)
class AdamWGroups:
    """What AdamW steps beside Muon, and how.

    Attributes:
        patterns: of the names of matrices that are not for Muon.
        batched: parameters of more than two dimensions are stacks of matrices, for Muon.
        values: the hyperparameters that differ from Muon's.
    """

    patterns: tuple[str, ...]
    batched: bool
    values: dict[str, Any]


@dataclass(frozen=True)
class OptimizerConfig:
    """The `optimizer` section: control keys, and the hyperparameters that go to the class."""

    name: str
    type: str
    hyperparameters: dict[str, Any]
    groups: AutoParamGroups
    adamw: AdamWGroups | None  # of Muon alone
    lookahead_k: int  # 0: off
    lookahead_alpha: float
    scheduler_hook: bool
    warmup_steps: int
    clip_grad_norm: float | None
    accumulate_steps: int
    precision_safe: bool
    bf16_preferred: bool
    fused: bool
    detect_anomaly: bool
    log_config: bool
    rich_console: bool
    hash_to_debuglog: bool
    export_json: str | None
    node: dict[str, Any]  # as resolved, verbatim: what is hashed and recorded


@dataclass(frozen=True)
class SchedulerConfig:
    """The `scheduler` section."""

    name: str
    warmup_steps: int | None
    min_lr: float
    cycle_momentum: bool | None


def plain(config: Any) -> Any:
    """A config as plain dicts and lists, interpolations resolved.

    Raises:
        ConfigError: an interpolation does not resolve.
    """
    if not isinstance(config, DictConfig):
        return config
    try:
        return OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise ConfigError([str(error).splitlines()[0]]) from error


def optimizer_node(config: Any) -> dict[str, Any]:
    """The `optimizer` section of a root config; the section itself is returned as it is."""
    config = plain(config)
    if isinstance(config, Mapping) and isinstance(config.get("optimizer"), Mapping):
        config = config["optimizer"]
    return config  # type: ignore[no-any-return]


def parse_optimizer(config: Any) -> OptimizerConfig:
    """Checks and types an `optimizer` section.

    Args:
        config: the root config, its `optimizer` section, or a dict of either.

    Raises:
        ConfigError: lists every unknown key, wrong type and value out of range.
    """
    problems: list[str] = []
    parsed = read_optimizer(config, problems)
    if problems:
        raise ConfigError(problems)
    return parsed


def read_optimizer(config: Any, problems: list[str]) -> OptimizerConfig:
    """As `parse_optimizer`, but adds to `problems` instead of raising."""
    node = optimizer_node(config)
    section = Section("optimizer", node, problems)
    _nested(section)
    for key in ("name", "type", "lr"):
        if key not in section.values:
            section.wrong(key, "is required")
    kind = _type(section)
    for key in ("gradient_centralization", "adaptive_weight_decay"):
        if section.flag(key):
            section.wrong(key, "is not implemented: it changes the update rule; set it to false")
    kind = _decoupled(section, kind)
    clip = section.on("clip_grad_norm", (None, False))
    export = section.on("export_json", (None, False))
    lookahead = _lookahead(section)
    return OptimizerConfig(
        name=section.text("name", kind.lower()),
        type=kind,
        hyperparameters=read_hyperparameters(section, kind, _CONTROL) if kind else {},
        groups=_groups(section, kind),
        adamw=_adamw(section, kind),
        lookahead_k=lookahead[0],
        lookahead_alpha=lookahead[1],
        scheduler_hook=section.flag("scheduler_hook", True),
        warmup_steps=section.whole("warmup_steps", 0),
        clip_grad_norm=(section.number("clip_grad_norm", 0.0) or None) if clip else None,
        accumulate_steps=section.whole("accumulate_steps", 1, least=1),
        precision_safe=section.flag("precision_safe", True),
        bf16_preferred=section.flag("bf16_preferred", True),
        fused=section.flag("fused"),
        detect_anomaly=section.flag("detect_anomaly"),
        log_config=section.flag("log_config", True),
        rich_console=section.flag("rich_console", True),
        hash_to_debuglog=section.flag("hash_to_debuglog", True),
        export_json=section.text("export_json") if export else None,
        node=dict(section.values),
    )


def _nested(section: Section) -> None:
    """A file that leaves out its first line ends up one level too deep."""
    if "optimizer" in section.values:
        inner = section.values.pop("optimizer")
        section.wrong(
            "optimizer",
            "is one level too deep: begin the YAML file with the line `# @package _global_`",
        )
        section.values = {**(inner if isinstance(inner, Mapping) else {}), **section.values}


def _type(section: Section) -> str:
    """One of `TYPES`, or empty where it is none of them and nothing can be said of the rest."""
    if section.values.get("type") == "LBFGS":
        section.wrong("type", "LBFGS runs the model several times a step: use it in your own loop")
        return ""
    return section.text("type", "", TYPES)


def _decoupled(section: Section, kind: str) -> str:
    """`decoupled: true` makes Adam AdamW; elsewhere it may only repeat what holds anyway."""
    if "decoupled" not in section.values or not kind:
        return kind
    decoupled = section.flag("decoupled")
    if kind == "Adam":
        return "AdamW" if decoupled else kind
    if kind == "AdamW" and not decoupled:
        section.wrong("decoupled", "contradicts type AdamW: use type Adam for coupled decay")
    elif decoupled != (kind in DECOUPLED):
        section.wrong("decoupled", f"cannot be {str(decoupled).lower()} for {kind}: leave it out")
    return kind


def _lookahead(section: Section) -> tuple[int, float]:
    lookahead = section.section("lookahead")
    lookahead.known(("enabled", "alpha", "k"))
    k = lookahead.whole("k", 6, least=1)
    alpha = lookahead.number("alpha", 0.5, most=1.0)
    return (k if lookahead.flag("enabled") else 0), alpha


def _groups(optimizer: Section, kind: str) -> AutoParamGroups:
    section = optimizer.section("auto_param_groups")
    section.known(("enabled", "no_decay_patterns", "override_no_decay_weight"))
    patterns = _texts(section, "no_decay_patterns", NO_DECAY_PATTERNS)
    enabled = section.flag("enabled")
    if enabled and kind and "weight_decay" not in arguments(kind):
        section.wrong("enabled", f"should be false: {kind} has no weight decay")
    return AutoParamGroups(
        enabled=enabled,
        patterns=patterns,
        no_decay=section.number("override_no_decay_weight", 0.0),
    )


def _texts(section: Section, key: str, default: tuple[str, ...]) -> tuple[str, ...]:
    texts = section.values.get(key, default)
    if not isinstance(texts, (list, tuple)) or not all(isinstance(p, str) for p in texts):
        section.wrong(key, f"should be a list of texts, not {shown(texts)}")
        return default
    return tuple(texts)


def _adamw(optimizer: Section, kind: str) -> AdamWGroups | None:
    if kind != "Muon":
        if kind and "adamw" in optimizer.values:
            optimizer.wrong("adamw", f"is for type Muon, and this is {kind}: leave it out")
        return None
    section = optimizer.section("adamw")
    given = read_some(section, "AdamW", ("lr", "betas", "eps", "weight_decay", "amsgrad"))
    return AdamWGroups(
        patterns=_texts(section, "patterns", ADAMW_PATTERNS),
        batched=optimizer.values.get("batched") is True,
        values=given,
    )


def read_scheduler(config: Any, problems: list[str]) -> SchedulerConfig:
    """Reads the `scheduler` section of a root config; an absent one means none."""
    root = plain(config)
    section = Section("scheduler", root.get("scheduler", {"name": "none"}), problems)
    section.known(("name", "warmup_steps", "min_lr", "cycle_momentum"))
    return SchedulerConfig(
        name=section.text("name", "none", ("cosine", "onecycle", "none")),
        warmup_steps=section.whole("warmup_steps", 0) if section.on("warmup_steps") else None,
        min_lr=section.number("min_lr", 0.0),
        cycle_momentum=section.flag("cycle_momentum") if section.on("cycle_momentum") else None,
    )
