"""Step times: operators, kernels, collectives, dispatch, pipelines; what fits in memory."""

from simcluster.roofline.base import StepShape, StepTime
from simcluster.roofline.memory import (
    check_pp,
    check_tp,
    kv_blocks,
    kv_bytes_per_token_per_gpu,
    kv_pool_bytes,
    tp_degrees,
    weight_bytes_per_gpu,
)
from simcluster.roofline.operators import stage_layers
from simcluster.roofline.pipeline import Pipeline, handover_s, pipeline_stages
from simcluster.roofline.schedule import KernelRun, KernelSchedule
from simcluster.roofline.steptime import RooflineStepTime

__all__ = [
    "KernelRun",
    "KernelSchedule",
    "Pipeline",
    "RooflineStepTime",
    "StepShape",
    "StepTime",
    "check_pp",
    "check_tp",
    "handover_s",
    "kv_blocks",
    "kv_bytes_per_token_per_gpu",
    "kv_pool_bytes",
    "pipeline_stages",
    "stage_layers",
    "tp_degrees",
    "weight_bytes_per_gpu",
]
