"""Step times: operators, kernels, collectives, dispatch, pipelines; what fits in memory.

==============  =====================================================================
module          idea
==============  =====================================================================
base            the contract: shape of a step -> duration
operators       FLOPs and bytes of a forward pass on one rank
kernels         time of one kernel: a smooth roofline plus a latency
layout          tensor, data and expert parallelism: who has what, and who is busiest
experts         time of the grouped multiplications of experts
smooth          the smooth maximum of two times
collectives     time of an all-reduce, all-gather or all-to-all
dispatch        CPU issue and GPU execution as a two-machine flow shop
memory          weights, and the KV blocks that are left
attention       attention of one layer of each kind in a step
host            host work of a step, before and after its kernels
step_kernels    the kernels of a step in issue order, with their times
schedule        a step as the dispatcher sees it: kernels in issue order
steptime        step times from all of these
whole           step times that are known for whole steps only
sources         sources of step times, by name
bounded         caches that do not fill the memory
pipeline        stages of a pipeline, and the batches that pass them
assumptions     what they take for granted of a model on a GPU, line by line
answers         what step times ask of a source of measured kernel times
measured        measured kernel times in the place of those of the law
kinds           kinds of deployments, and the measured errors of each
of_environment  step times on the GPUs and fabric of an environment
==============  =====================================================================
"""

from simcluster.roofline.base import RankTime, StageTime, StepShape, StepTime
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
from simcluster.roofline.whole import WholeStepTime

__all__ = [
    "STEP_TIMES",
    "KernelRun",
    "KernelSchedule",
    "Pipeline",
    "RankTime",
    "RooflineSource",
    "RooflineStepTime",
    "StageTime",
    "StepShape",
    "StepTime",
    "StepTimeFactory",
    "StepTimeSource",
    "WholeStepTime",
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
