"""How many events a run takes kernel by kernel, and how many are too many."""

from __future__ import annotations

from typing import Final

from simcluster.config import Environment
from simcluster.frames.unroll import InstanceKind
from simcluster.roofline import StepShape
from simcluster.roofline.sources import source_of, times_of

MAX_EVENTS: Final = 20_000_000
"""A stretch with more simulated kernel events than this is refused: minutes to run, gigabytes."""

EVENTS_PER_KERNEL: Final = 4
"""Of the simulation, on each rank: issue, into the queue, out of the queue, run."""


def events_per_step(environment: Environment, kind: InstanceKind) -> int:
    """Return the events of a step of such an instance, run kernel by kernel."""
    part = environment.part(kind.model, kind.gpu)
    times = times_of(source_of(part), part, kind.layout)
    schedule = times.kernels(StepShape(1, 1, (), 1, 1))
    num_kernels = sum(len(run.names) * run.repeat for run in schedule.runs)
    return kind.layout.num_gpus * num_kernels * EVENTS_PER_KERNEL
