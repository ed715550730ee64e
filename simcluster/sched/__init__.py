"""Schedulers: decisions and books of an instance, no clock.

================== =============================================================================
`base`             `Scheduler`: queue, admission, preemption; what a plan may rest on
`books`            `Books`: who runs with which KV blocks, and what the steps of a plan change
`queue`            `RequestQueue`: order in which waiting requests are admitted; first come
`policies`         queues by shortest prompt and by priority; the registry of queues
`plan`             `StepPlan`: the tokens that the next steps compute, and their outcome
`swap`             KV of preempted requests in host memory
`decode_batch`     decoding sequences, counted together with no work per sequence per step
`cycle`            events that come back, counted in closed form
`prefill_priority` separate batches, prefill first (vLLM V0)
`chunked`          hybrid batches with a token budget (Sarathi-Serve, vLLM V1)
`chunked_apart`    chunks of prompts in steps of their own (SGLang)
================== =============================================================================

Add a policy: a class derived from `KeyedQueue`, registered in ``QUEUES``. Add a way of batching: a
class derived from `Scheduler`, registered in ``SCHEDULERS``. ``docs/extending.md`` has complete
examples; the contract tests run on every registered name.
"""

from __future__ import annotations

from simcluster.registry import Registry
from simcluster.sched.base import Scheduler
from simcluster.sched.chunked import ChunkedPrefill
from simcluster.sched.chunked_apart import ChunkedApart
from simcluster.sched.decode_batch import DecodeBatch
from simcluster.sched.plan import StepOutcome, StepPlan, target
from simcluster.sched.policies import QUEUES, KeyedQueue, Priority, ShortestFirst
from simcluster.sched.prefill_priority import PrefillPriority
from simcluster.sched.queue import FirstCome, RequestQueue

SCHEDULERS: Registry[type[Scheduler]] = Registry(
    "simcluster.schedulers",
    {
        "prefill-priority": PrefillPriority,
        "chunked": ChunkedPrefill,
        "chunked-apart": ChunkedApart,
    },
)
"""Schedulers by the name that ``strategy.scheduler`` gives them."""


def splitting() -> list[str]:
    """Return the names of the registered schedulers that compute prompts in chunks."""
    return [name for name, scheduler in SCHEDULERS.items() if scheduler.splits_prompts]


__all__ = [
    "QUEUES",
    "SCHEDULERS",
    "ChunkedApart",
    "ChunkedPrefill",
    "DecodeBatch",
    "FirstCome",
    "KeyedQueue",
    "PrefillPriority",
    "Priority",
    "RequestQueue",
    "Scheduler",
    "ShortestFirst",
    "StepOutcome",
    "StepPlan",
    "splitting",
    "target",
]
