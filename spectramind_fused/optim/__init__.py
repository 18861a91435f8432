"""Drop-in torch.optim classes and the one step they share."""

from spectramind_fused.optim.adam import FusedAdam, FusedAdamW
from spectramind_fused.optim.base import FusedStep
from spectramind_fused.optim.lion import FusedLion, Lion
from spectramind_fused.optim.rmsprop import FusedRMSprop
from spectramind_fused.optim.scaler import GradScaler
from spectramind_fused.optim.sgd import FusedSGD

__all__ = [
    "FusedAdam",
    "FusedAdamW",
    "FusedLion",
    "FusedRMSprop",
    "FusedSGD",
    "FusedStep",
    "GradScaler",
    "Lion",
]
