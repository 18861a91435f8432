"""The last finished epoch of a run: on the disk, or at hand for when the run is interrupted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from spectramind_fused.training import checkpoint


class Keeper:
    """Writes `checkpoint.pt` after every `every` epochs, and after the last one.

    Of an epoch between two checkpoints it keeps a copy in the host's memory.
    """

    def __init__(
        self,
        run_folder: Path,
        every: int,
        epochs: int,
        config: dict[str, Any],
        keep: int,
        *parts: Any,
    ) -> None:
        """Writes nothing yet.

        Args:
            run_folder: the run's own.
            every: how many epochs lie between two checkpoints; 0 keeps and writes none.
            epochs: how many there are going to be.
            config: of the run.
            keep: how many checkpoints stay.
            *parts: model, optimizer, scheduler and precision, as `checkpoint.collect` takes them.
        """
        self._path = run_folder / "checkpoint.pt"
        self._every, self._epochs, self._config, self._parts = every, epochs, config, parts
        self._keep = keep
        self._kept: tuple[int, bytes] | None = None
        self._done = 0

    def epoch(self, number: int, steps: int) -> None:
        """Keeps a finished epoch.

        Args:
            number: from 1.
            steps: how many the run has taken in all.
        """
        if self._every:
            told = {"epoch": number, "steps": steps, "config": self._config}
            content = checkpoint.collect(told, *self._parts)
            if number % self._every == 0 or number == self._epochs:
                checkpoint.save(self._path, content, number, self._keep)
                self._kept = None
            else:
                self._kept = number, checkpoint.packed(content)
        self._done = number

    def interrupted(self) -> str:
        """Writes what is only at hand; returns how far the run came and how it goes on."""
        if self._kept is not None:
            number, content = self._kept
            checkpoint.save(self._path, content, number, self._keep)
        if not self._done:
            return "before its first epoch was finished, so there is nothing to resume"
        how_far = f"after {self._done} of {self._epochs} epochs"
        if not self._every:
            return f"{how_far}, of which training.checkpoint_every=0 keeps nothing"
        return f"{how_far}; training.resume={self._path} goes on from there"
