"""The few small arrays through which a kernel reaches every tensor."""

from spectramind_fused.multi_tensor.layout import (
    PLAIN,
    has_memory,
    is_dense,
    overlapping,
    overlaps_itself,
    relaid,
)
from spectramind_fused.multi_tensor.tables import (
    GRAD,
    PARAM,
    PIECE,
    STEP,
    Bucket,
    Reduction,
    Scaling,
    Tables,
)

__all__ = [
    "GRAD",
    "PARAM",
    "PIECE",
    "PLAIN",
    "STEP",
    "Bucket",
    "Reduction",
    "Scaling",
    "Tables",
    "has_memory",
    "is_dense",
    "overlapping",
    "overlaps_itself",
    "relaid",
]
