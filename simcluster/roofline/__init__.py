"""Step times: operators, kernels, collectives and dispatch; what fits in memory."""

from simcluster.roofline.base import KernelRun, KernelSchedule, StepShape, StepTime
from simcluster.roofline.memory import (
    check_tp,
    kv_blocks,
    kv_bytes_per_token_per_gpu,
    kv_pool_bytes,
    tp_degrees,
    weight_bytes_per_gpu,
)
from simcluster.roofline.steptime import RooflineStepTime

__all__ = [
    "KernelRun",
    "KernelSchedule",
    "RooflineStepTime",
    "StepShape",
    "StepTime",
    "check_tp",
    "kv_blocks",
    "kv_bytes_per_token_per_gpu",
    "kv_pool_bytes",
    "tp_degrees",
    "weight_bytes_per_gpu",
]
