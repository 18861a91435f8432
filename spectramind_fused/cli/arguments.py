"""What was typed, sorted into a command, flags and overrides, and handed to Hydra."""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from spectramind_fused.config.overrides import forced
from spectramind_fused.config.packaged import packaged_configs

COMMANDS = ("train", "check", "doctor", "compare", "bench")

# Hydra's flags that take a value; the others stand alone.
_VALUED = ("--cfg", "-c", "--package", "-p", "--config-path", "-cp", "--config-name", "-cn",
           "--config-dir", "-cd", "--experimental-rerun", "--shell-completion", "-sc")  # fmt: skip
_NAMING = {
    **dict.fromkeys(("--config-dir", "-cd", "--config-path", "-cp"), "dir"),
    **dict.fromkeys(("--config-name", "-cn"), "name"),
}
# Flags that only show something.
_SHOWING = ("--help", "-h", "--hydra-help", "--version", "--cfg", "-c", "--info", "-i")


@dataclass(frozen=True)
class Arguments:
    """Hydra's flags with their values, and overrides.

    Attributes:
        flags: what Hydra is given, less those that name configs.
        overrides: as typed, but those our checks answer for are forced upon Hydra.
        user_folder: --config-dir, whose files come before ours of the same name.
        name: of the root config.
    """

    flags: list[str]
    overrides: list[str]
    user_folder: Path | None
    name: str

    @classmethod
    def of(cls, words: list[str]) -> Arguments:
        """Sorts what was typed behind and before the command."""
        flags, overrides = flags_and_overrides(words)
        kept: list[str] = []
        values = {"dir": "", "name": "train"}
        rest = iter(flags)
        for flag in rest:
            word, sign, value = flag.partition("=")
            if word in _NAMING:
                values[_NAMING[word]] = value if sign else next(rest, "")
            else:
                kept.append(flag)
        folder = Path(values["dir"]).absolute() if values["dir"] else None
        return cls(kept, [forced(o) for o in overrides], folder, values["name"])

    @property
    def folder(self) -> Path:
        """Where configs are looked for first."""
        return self.user_folder or packaged_configs()

    def of_runs(self) -> list[str]:
        """The overrides that are not Hydra's own."""
        return [word for word in self.overrides if not re.match(r"[+~]*hydra[./]", word)]

    @property
    def sweep(self) -> bool:
        """Whether commas separate values."""
        return bool({"-m", "--multirun"} & set(self.flags))

    @property
    def only_shows(self) -> bool:
        """Whether Hydra is only to show something."""
        return any(flag.split("=")[0] in _SHOWING for flag in self.flags)

    @property
    def completion(self) -> str:
        """What a shell asks of Hydra's completion; empty if nothing."""
        valued = dict(pairwise(self.flags))
        valued |= {w: v for w, sign, v in (f.partition("=") for f in self.flags) if sign}
        return valued.get("--shell-completion") or valued.get("-sc") or ""

    def for_hydra(self) -> list[str]:
        """A command line of Hydra's, flags first."""
        return ["spectramind", *self.flags, *self.overrides]


def split_command(words: list[str]) -> tuple[str | None, list[str]]:
    """Takes the first command word out, wherever it stands."""
    for i, word in enumerate(words):
        if word in COMMANDS:
            return word, words[:i] + words[i + 1 :]
    return None, words


def flags_and_overrides(words: list[str]) -> tuple[list[str], list[str]]:
    """Parts dashed flags, with their values, from overrides: Hydra wants the flags first."""
    flags: list[str] = []
    overrides: list[str] = []
    rest = iter(words)
    for word in rest:
        if not word.startswith("-"):
            overrides.append(word)
            continue
        flags.append(word)
        if word in _VALUED:
            flags += [value for value in [next(rest, None)] if value is not None]
    return flags, overrides
