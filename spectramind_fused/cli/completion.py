"""Tab completion: Hydra's, which knows no command word."""

from __future__ import annotations

import os
import sys

from spectramind_fused.cli import hydra_main
from spectramind_fused.cli.arguments import COMMANDS, Arguments, split_command


def run(arguments: Arguments) -> None:
    """Answers a shell: installs the completion, or completes the line it holds."""
    if arguments.completion.startswith("query"):
        line = os.environ.get("COMP_LINE", "")
        words = line.split()
        complete = words[1:] if line[-1:].isspace() else words[1:-1]  # but the one at the cursor
        command, _ = split_command(complete)
        if command is None:
            print("\n".join(COMMANDS))
            return
        last = "" if line[-1:].isspace() else words[-1]
        if command == "compare":
            print("\n".join(_flags_or_folders(last)))
        if command in ("doctor", "compare"):
            return
        typed = Arguments.of(split_command(words[1:])[1])
        kept = [w for w in words[1:-1] if "=" in w and not w.startswith("-")]
        os.environ["COMP_LINE"] = " ".join([words[0], *kept, last])
        arguments = Arguments(arguments.flags, [], typed.user_folder, typed.name)
    import spectramind_fused.training.search  # noqa: F401  so that Hydra knows hydra/sweeper=search

    sys.argv = arguments.for_hydra()
    hydra_main.start(arguments.folder, arguments.name, lambda _: None)


def _flags_or_folders(begun: str) -> list[str]:
    """What `compare` may be given that begins so."""
    if begun.startswith("-"):
        return ["--help", "--out"]
    parent, name = os.path.split(begun)
    try:
        inside = sorted(entry.name for entry in os.scandir(parent or ".") if entry.is_dir())
    except OSError:
        return []
    return [
        f"{os.path.join(parent, each)}/"
        for each in inside
        if each.startswith(name) and not each.startswith(".")
    ]
