"""Schedulers: what an instance runs next. Pure decisions and books, no clock.

Add one: a file with a class derived from `BatchScheduler` (or any class that meets `Scheduler`)
and a line in ``SCHEDULERS``.
"""

from __future__ import annotations

from simcluster.sched.base import BatchScheduler, DecodeBatch, Scheduler, StepOutcome, StepPlan
from simcluster.sched.chunked import ChunkedPrefill
from simcluster.sched.prefill_priority import PrefillPriority

SCHEDULERS: dict[str, type[BatchScheduler]] = {
    "prefill-priority": PrefillPriority,
    "chunked": ChunkedPrefill,
}

__all__ = [
    "SCHEDULERS",
    "BatchScheduler",
    "ChunkedPrefill",
    "DecodeBatch",
    "PrefillPriority",
    "Scheduler",
    "StepOutcome",
    "StepPlan",
]
