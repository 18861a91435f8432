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
    COMMON_HYPERPARAMETERS,
    COMMON_SCALARS,
    DTYPES,
    FIRST_STATE,
    GRAD,
    MAX_SLOTS,
    PARAM,
    PIECE,
    SOURCE_COLUMNS,
    STEP,
    Bucket,
    Reduction,
    Scaling,
    Tables,
)

__all__ = [
    "COMMON_HYPERPARAMETERS",
    "COMMON_SCALARS",
    "DTYPES",
    "FIRST_STATE",
    "GRAD",
    "MAX_SLOTS",
    "PARAM",
    "PIECE",
    "PLAIN",
    "SOURCE_COLUMNS",
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
