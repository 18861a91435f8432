"""Drop-in torch.optim classes and the one step they share."""

from spectramind_fused.optim import registry
from spectramind_fused.optim.base import FusedStep
from spectramind_fused.optim.lion import Lion
from spectramind_fused.optim.muon import Muon
from spectramind_fused.optim.registry import *  # noqa: F403  (a new class is listed there alone)
from spectramind_fused.optim.registry import OPTIMIZERS
from spectramind_fused.optim.scaler import GradScaler
from spectramind_fused.stepping.options import Options

__all__ = ["OPTIMIZERS", "FusedStep", "GradScaler", "Lion", "Muon", "Options"]
__all__ += registry.__all__
