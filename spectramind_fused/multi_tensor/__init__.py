"""The few small arrays through which a kernel reaches every tensor."""

from spectramind_fused.multi_tensor.layout import is_dense, relaid
from spectramind_fused.multi_tensor.tables import FIRST_STATE, GRAD, PARAM, STEP, Bucket, Tables

__all__ = ["FIRST_STATE", "GRAD", "PARAM", "STEP", "Bucket", "Tables", "is_dense", "relaid"]
