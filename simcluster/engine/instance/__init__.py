"""One copy of the model: the process, its span, how steps pass, what others see of it.

============= ==================================================================================
`ports`       `InstanceLike`, what others may ask; `InstanceOwner`, who hears what happens
`instance`    `Instance`: schedule, let the steps pass, book what they did, again
`state`       what routers and strategies may read: the state at the last step boundary
`span`        the steps under way, as one object
`runner`      how the steps of a span pass: one event, kernel by kernel, through a pipeline
`span_log`    books steps and writes rows of the spans frame
`held_output` tokens that are computed and not yet released
============= ==================================================================================
"""

from __future__ import annotations

from simcluster.engine.instance.instance import Instance
from simcluster.engine.instance.ports import (
    InstanceLike,
    InstanceOwner,
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
