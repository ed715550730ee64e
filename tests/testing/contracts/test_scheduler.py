"""The contract of schedulers: ours keep it, and it notices those that do not.

Programs that are wrong on purpose stand beside the law that notices each.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import pytest

from simcluster.config import SchedulerConfig
from simcluster.kvcache import BlockPool
from simcluster.request import Request
from simcluster.sched import (
    SCHEDULERS,
    ChunkedPrefill,
    PrefillPriority,
    Scheduler,
    StepPlan,
)
from simcluster.testing.contracts import (
    SchedulerContract,
)
from simcluster.testing.contracts.base import notices


@pytest.mark.parametrize("name", list(SCHEDULERS))
class TestRegisteredSchedulers(SchedulerContract):
    """Every scheduler that is registered."""

    @pytest.fixture
    def scheduler(self, name: str) -> type[Scheduler]:
        """Return the class."""
        return SCHEDULERS[name]


class InPairs(PrefillPriority):
    """Right: lets requests decode until two others wait, and says that it looks at how many."""

    looks_beyond_head = True

    def _prefill_chunks(self, now: float) -> tuple[tuple[Request, int], ...]:
        if len(self.waiting) < 2 and self.batch.size:
            return ()
        return super()._prefill_chunks(now)


class TestASchedulerThatLooksBeyondTheHead(SchedulerContract):
    """It keeps the contract, also where the engine plans a step ahead."""

    @pytest.fixture
    def scheduler(self) -> type[Scheduler]:
        """Return the class."""
        return InPairs


class WaitsForOthers(ChunkedPrefill):
    """As TensorRT-LLM: prompts wait beside decodes, here 5 steps or for half of the budget."""

    def __init__(self, config: SchedulerConfig, pool: BlockPool, **settings: Any) -> None:
        most = 0.5 * config.max_num_batched_tokens
        config = dataclasses.replace(config, prefill_wait_steps=5, prefill_wait_tokens=most)
        super().__init__(config, pool, **settings)


class EveryThirdStep(ChunkedPrefill):
    """As vLLM with ``prefill_schedule_interval = 3``."""

    def __init__(self, config: SchedulerConfig, pool: BlockPool, **settings: Any) -> None:
        super().__init__(
            config=dataclasses.replace(config, prefill_interval=3), pool=pool, **settings
        )


class BothDelays(WaitsForOthers):
    """The two together."""

    def __init__(self, config: SchedulerConfig, pool: BlockPool, **settings: Any) -> None:
        super().__init__(dataclasses.replace(config, prefill_interval=4), pool, **settings)


@pytest.mark.parametrize("kind", [WaitsForOthers, EveryThirdStep, BothDelays])
class TestSchedulersThatDelayPrefill(SchedulerContract):
    """Spans, steps and kernels agree however long prompts wait beside decodes."""

    @pytest.fixture
    def scheduler(self, kind: type[Scheduler]) -> type[Scheduler]:
        """Return the class."""
        return kind


class KeepsToItself(InPairs):
    """Looks at how many wait, and does not say so."""

    looks_beyond_head = False


class SaysNothingChanges(PrefillPriority):
    """Says that an arrival changes nothing, also where it is the head and fits."""

    def add(self, request: Request) -> bool:
        """Never true."""
        super().add(request)
        return False


class AssumesFirstCome(PrefillPriority):
    """Takes for granted that a newcomer stands at the end, whatever the queue."""

    def add(self, request: Request) -> bool:
        """True where nobody else waited."""
        alone = self.waiting.head is None
        super().add(request)
        return alone


class PlansTooFar(PrefillPriority):
    """Plans decodes to the next end, also where it has just preempted and others could come in."""

    def _decode_plan(self, now: float) -> StepPlan | None:
        plan = super()._decode_plan(now)
        if plan is not None:
            free = self.pool.free_blocks
            plan.max_steps = self.batch.steps_with(free, self.batch.steps_to_next_end())
        return plan


class KnowsTheAnswers(PrefillPriority):
    """Lets long answers wait while others decode."""

    def _plan(self, now: float) -> StepPlan | None:
        head = self.waiting.head
        if head is not None and head.output_len > 20 and self.batch.size:
            return self._decode_plan(now)
        return super()._plan(now)

    def add(self, request: Request) -> bool:
        """True: it looks at more than whether the head fits."""
        super().add(request)
        return True


class Leaks(PrefillPriority):
    """Forgets the blocks of every third request that ends."""

    def _leave(self, request: Request, now: float) -> None:
        super()._leave(request, now)
        if request.request_id % 3 == 2:
            self.pool.allocate(1)


class Idles(PrefillPriority):
    """Waits for company: no step with a single request."""

    def _plan(self, now: float) -> StepPlan | None:
        if len(self.waiting) == 1 and not self.num_running:
            return None
        return super()._plan(now)


class RestsAfterEachStep(ChunkedPrefill):
    """Does nothing every other time it is asked."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._rests = False

    def schedule(self, now: float) -> StepPlan | None:
        """None in between."""
        self._rests = not self._rests
        return None if self._rests and self.batch.size else super().schedule(now)


class Drops(ChunkedPrefill):
    """Loses every fifth request."""

    def add(self, request: Request) -> bool:
        """Queue it, or not."""
        return False if request.request_id % 5 == 4 else super().add(request)


class Overfills(PrefillPriority):
    """Admits one sequence more than it may."""

    def _plan(self, now: float) -> StepPlan | None:
        limits = self.config
        self.config = dataclasses.replace(limits, max_num_seqs=limits.max_num_seqs + 1)
        plan = super()._plan(now)
        self.config = limits
        return plan


class KeepsStateInItsClass(PrefillPriority):
    """Two of them count their steps together, and decode at every third whatever waits."""

    steps: ClassVar[list[float]] = []

    def _plan(self, now: float) -> StepPlan | None:
        self.steps.append(now)
        if self.batch.size and len(self.steps) % 3 == 0:
            plan = self._decode_plan(now)
            if plan is not None:
                plan.max_steps = 1
            return plan
        return super()._plan(now)

    def add(self, request: Request) -> bool:
        """True: a plan holds for one step."""
        super().add(request)
        return True


class EveryOtherIsLazy(InPairs):
    """Every other one that is made lets requests wait for company."""

    made: ClassVar[list[int]] = []

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.made.append(1)
        self._is_lazy = len(self.made) % 2 == 1

    def _prefill_chunks(self, now: float) -> tuple[tuple[Request, int], ...]:
        own = super() if self._is_lazy else super(InPairs, self)
        return own._prefill_chunks(now)


class PreemptsFromASet(PrefillPriority):
    """Preempts whom a set of the running requests gives first."""

    def _make_room_for_one_step(self) -> None:
        while self.batch.size and self.batch.blocks_needed(1) > self.pool.free_blocks:
            self._preempt(next(iter(set(self._running.values()))))


class ForgetsToCount(ChunkedPrefill):
    """Queues requests without the tokens that routers see."""

    def add(self, request: Request) -> bool:
        """Into the queue, and nothing else."""
        return self.waiting.push(request)


CROWD = {"num_kv_blocks": 13}
WRONG_SCHEDULERS: list[tuple[type, str, str, dict[str, Any]]] = [
    (SaysNothingChanges, "resolutions_agree_in_a_crowd", "requests.scheduled_s", CROWD),
    (KeepsToItself, "resolutions_agree_in_a_crowd", "requests.scheduled_s", CROWD),
    (AssumesFirstCome, "resolutions_agree_in_a_crowd", "requests.scheduled_s", CROWD),
    (PlansTooFar, "resolutions_agree_in_a_crowd", "requests.scheduled_s", CROWD),
    (
        KnowsTheAnswers,
        "decisions_do_not_depend_on_how_long_an_answer_will_be",
        "the answers decide before one has ended",
        {},
    ),
    (Leaks, "nothing_is_lost_and_no_work_that_fits_waits", "KV blocks lost", {}),
    (Leaks, "resolutions_agree_in_a_crowd", "KV blocks lost", CROWD),
    (Idles, "nothing_is_lost_and_no_work_that_fits_waits", "stopped while the head", {}),
    (Idles, "resolutions_agree_in_a_crowd", "stopped while the head", CROWD),
    (RestsAfterEachStep, "resolutions_agree_in_a_crowd", "stopped with sequences", CROWD),
    (Drops, "nothing_is_lost_and_no_work_that_fits_waits", "not all requests have ended", {}),
    (Drops, "resolutions_agree_in_a_crowd", "requests are left and nothing happens", CROWD),
    (Overfills, "resolutions_agree_in_a_crowd", "more running than max_num_seqs", CROWD),
    (KeepsStateInItsClass, "two_of_them_share_nothing", "changes what this one does", {}),
    (KeepsStateInItsClass, "equal_instances_with_equal_requests_stay_equal", "differs between", {}),
    (EveryOtherIsLazy, "the_same_run_gives_the_same_result", "requests", {}),
    (
        PreemptsFromASet,
        "decisions_do_not_depend_on_the_order_of_a_set",
        "the hash of a request decides",
        {},
    ),
    (ForgetsToCount, "resolutions_agree_in_a_crowd", "queued_tokens is not the sum", CROWD),
]


@pytest.mark.parametrize(
    ("wrong", "law", "message", "given"),
    WRONG_SCHEDULERS,
    ids=[w[0].__name__ for w in WRONG_SCHEDULERS],
)
def test_the_scheduler_contract_notices(
    wrong: type, law: str, message: str, given: dict[str, Any]
) -> None:
    """One law of it at least, in words that say what is wrong."""
    notices(SchedulerContract, law, message, scheduler=wrong, **given)
