"""Step times: operators, kernels, collectives, dispatch, pipelines; what fits in memory."""

from simcluster.roofline.base import StageTime, StepShape, StepTime
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
from simcluster.roofline.sources import (
    STEP_TIMES,
    RooflineSource,
    StepTimeFactory,
    StepTimeSource,
    source_of,
)
from simcluster.roofline.steptime import RooflineStepTime

__all__ = [
    "STEP_TIMES",
    "KernelRun",
    "KernelSchedule",
    "Pipeline",
    "RooflineSource",
    "RooflineStepTime",
    "StageTime",
    "StepShape",
    "StepTime",
    "StepTimeFactory",
    "StepTimeSource",
    "check_pp",
    "check_tp",
    "handover_s",
    "kv_blocks",
    "kv_bytes_per_token_per_gpu",
    "kv_pool_bytes",
    "pipeline_stages",
    "source_of",
    "stage_layers",
    "tp_degrees",
    "weight_bytes_per_gpu",
]
