"""One copy of the model: the process, its span, how steps pass, what others see of it.

================= =========================================================================
`instance`        `Instance`: schedule, let the steps pass, book what they did, again
`factory`         instances from shapes: schedulers, KV pools, step times put together
`span`            the steps under way, as one object
`runner`          how the steps of a span pass, as one event
`kernel_runner`   the same kernel by kernel
`pipeline_runner` the same through the stages of a pipeline
`span_log`        books steps and writes rows of the spans frame
`state`           what routers and strategies may read: the state at the last step boundary
`kv_hooks`        what moving KV between instances adds to the steps
`held_output`     tokens that are computed and not yet released
`owner`           `InstanceOwner`, who hears what happens in an instance
`ports`           `InstanceLike`, what others may ask of an instance, pipelined or not
`dispatcher`      CPU threads that issue kernels ahead of the GPU
`gpu`             in-order kernel queues, and collectives that wait for all ranks
`pipeline`        the stages, as the batches in flight meet them
`pipelined`       an instance with a pipeline: several lanes behind one face
`lock_step`       steps that data-parallel ranks take together
`data_parallel`   an instance with such ranks, and which of them gets a request
================= =========================================================================
"""

from __future__ import annotations

from simcluster.engine.instance.instance import Instance
from simcluster.engine.instance.owner import InstanceOwner
from simcluster.engine.instance.ports import (
    InstanceLike,
    InstanceStats,
    OnPrefill,
    StopAt,
    at_the_next_boundary,
)

__all__ = [
    "Instance",
    "InstanceLike",
    "InstanceOwner",
    "InstanceStats",
    "OnPrefill",
    "StopAt",
    "at_the_next_boundary",
]
