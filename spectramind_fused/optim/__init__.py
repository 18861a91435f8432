"""Drop-in torch.optim classes and the one step they share."""

from spectramind_fused.optim.adam import FusedAdam, FusedAdamW
from spectramind_fused.optim.amp import GradScaler
from spectramind_fused.optim.sgd import FusedSGD
from spectramind_fused.optim.step import FusedStep

__all__ = ["FusedAdam", "FusedAdamW", "FusedSGD", "FusedStep", "GradScaler"]
