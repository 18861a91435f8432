"""What the steps of a run were: kept on the device, and read a hundred at a time."""

from __future__ import annotations

import math
from statistics import fmean, median
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from spectramind_fused.optim import FusedStep
from spectramind_fused.training.history import Epoch
from spectramind_fused.training.loggers import Log

if TYPE_CHECKING:
    from lightning_fabric import Fabric

_TOGETHER = 100  # steps; whoever reads from a GPU waits for all that it was given to do


class Step(NamedTuple):
    """What one optimizer step was.

    Attributes:
        loss: mean over all processes.
        lrs: of each parameter group.
        norm: of all gradients, before clipping; None where the step took none.
        clip: what the gradients were multiplied by to clip them; None where nothing clips.
        skipped: whether nothing changed; None where no GradScaler could say so.
    """

    loss: float
    lrs: list[float]
    norm: float | None
    clip: float | None
    skipped: bool | None

    @property
    def clipped(self) -> bool:
        """Whether its gradients were made smaller, and used."""
        return self.clip is not None and self.clip < 1 and not self.skipped

    def figures(self) -> dict[str, float | None]:
        """Under the names that loggers have for them."""
        return {
            "train/loss": self.loss,
            **{f"lr/group_{i}": lr for i, lr in enumerate(self.lrs)},
            "grad/norm": self.norm,
            "grad/clip": self.clip,
            "grad/skipped": self.skipped,
        }


class Watch:
    """Follows the steps of a run, the same in each of its processes.

    A step leaves its loss, norm and skip on the device: the optimizer has them anyway, and nobody
    waits for them. They are read after every 100 steps and at the end of an epoch.

    Attributes:
        steps: how many the run has taken, those before a checkpoint included.
    """

    def __init__(self, fabric: Fabric, optimizer: FusedStep, log: Log, steps: int) -> None:
        """Begins to watch.

        Args:
            fabric: of the run.
            optimizer: whose steps these are.
            log: is given every step, or every so many.
            steps: how many were taken before.
        """
        self._fabric, self._optimizer, self._log = fabric, optimizer, log
        self.steps = steps
        self._losses: list[Tensor] = []
        self._norms: list[Tensor] = []  # as many, or none
        self._skips: list[Tensor] = []  # likewise
        self._lrs: list[list[float]] = []
        self._of_epoch: list[Step] = []

    def step(self, loss: Tensor) -> None:
        """Notes the step that was just taken, before a schedule moves on.

        Args:
            loss: of this process, 0-dim and on the device.
        """
        self._losses.append(loss)
        norm, skipped = self._optimizer.grad_norm, self._optimizer.skipped
        self._norms += [] if norm is None else [norm]
        self._skips += [] if skipped is None else [skipped]
        self._lrs.append([float(group["lr"]) for group in self._optimizer.param_groups])
        self.steps += 1
        if len(self._losses) == _TOGETHER:
            self._read()

    def epoch(self, number: int, score: float) -> Epoch:
        """Sums up the steps since the last epoch, and logs it.

        Args:
            number: of the epoch, from 1.
            score: val/gll after it.
        """
        self._read()
        steps, self._of_epoch = self._of_epoch, []
        norms = [step.norm for step in steps if step.norm is not None and not step.skipped]
        clips = any(step.clip is not None for step in steps)
        epoch = Epoch(
            number,
            loss=fmean(step.loss for step in steps),
            score=score,
            lr=float(self._optimizer.param_groups[0]["lr"]),
            norm=_median(norms),
            clipped=fmean(step.clipped for step in steps) if clips else None,
            skipped=sum(bool(step.skipped) for step in steps),
        )
        self._log.write([(self.steps, epoch.figures())])
        return epoch

    def _read(self) -> None:
        """Reads what lies on the device, in one copy, and logs it."""
        if not self._losses:
            return
        losses: Any = self._fabric.all_reduce(torch.stack(self._losses), reduce_op="mean")
        known = [torch.stack(kind).to(losses) for kind in (self._norms, self._skips) if kind]
        rows = iter(torch.stack([losses, *known]).tolist())
        unknown = [None] * len(self._losses)
        of_losses = next(rows)
        norms = next(rows) if self._norms else unknown
        skips = next(rows) if self._skips else unknown
        steps = [
            Step(loss, lrs, norm, _coefficient(norm, self._optimizer.clip_grad_norm), _flag(skip))
            for loss, lrs, norm, skip in zip(of_losses, self._lrs, norms, skips, strict=True)
        ]
        first = self.steps - len(steps) + 1
        self._log.steps([(first + i, step.figures()) for i, step in enumerate(steps)])
        self._of_epoch += steps
        for kind in (self._losses, self._norms, self._skips, self._lrs):
            kind.clear()


def _coefficient(norm: float | None, max_norm: float | None) -> float | None:
    """What the step multiplied its gradients by, as `Decision.factor` has it."""
    if norm is None or max_norm is None:
        return None
    return 1.0 if norm + 1e-6 <= max_norm else max_norm / (norm + 1e-6)


def _flag(value: float | None) -> bool | None:
    return None if value is None else value != 0


def _median(norms: list[float]) -> float | None:
    """Of what is finite, so that one bad step does not hide the others."""
    finite = [norm for norm in norms if math.isfinite(norm)]
    return median(finite or norms) if norms else None
