"""The few small arrays through which a kernel reaches every tensor."""

from spectramind_fused.multi_tensor.layout import is_dense, overlapping, overlaps_itself, relaid
from spectramind_fused.multi_tensor.tables import GRAD, PIECE, Bucket, Gradients, Reduction, Tables

__all__ = [
    "GRAD",
    "PIECE",
    "Bucket",
    "Gradients",
    "Reduction",
    "Tables",
    "is_dense",
    "overlapping",
    "overlaps_itself",
    "relaid",
]
