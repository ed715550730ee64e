"""Programs that are wrong on purpose: each breaks a law of its contract, and the contract says so.

The laws are called as pytest would call them; what they must notice stands beside each program.
"""

from __future__ import annotations

import dataclasses
import random
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import pytest

from simcluster.request import Request
from simcluster.routing import LeastLoaded, RoundRobin
from simcluster.routing.base import InstanceView
from simcluster.sched import (
    ChunkedPrefill,
    FirstCome,
    KeyedQueue,
    PrefillPriority,
    ShortestFirst,
    StepPlan,
)
from simcluster.testing.contracts import (
    QueueContract,
    RouterContract,
    SchedulerContract,
)

pytest_plugins = ["pytester"]


def broken(contract: type, law: str, message: str, **given: Any) -> None:
    """Check that `law` of `contract` fails with `message` on what is `given`."""
    with pytest.raises(AssertionError, match=message):
        getattr(contract(), f"test_{law}")(**given)


# --- schedulers ----------------------------------------------------------------------------------


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
    (
        PreemptsFromASet,
        "decisions_do_not_depend_on_the_order_of_a_set",
        "the hash of a request decides",
        {},
    ),
    (ForgetsToCount, "resolutions_agree_in_a_crowd", "queued_tokens is not the sum", CROWD),
]


@pytest.mark.parametrize(
    ("wrong", "law", "message", "given"), WRONG_SCHEDULERS, ids=lambda v: getattr(v, "__name__", "")
)
def test_the_scheduler_contract_notices(
    wrong: type, law: str, message: str, given: dict[str, Any]
) -> None:
    """One law of it at least, in words that say what is wrong."""
    broken(SchedulerContract, law, message, scheduler=wrong, **given)


# --- queues --------------------------------------------------------------------------------------


class SaysLast(ShortestFirst):
    """Says of every newcomer that it is not the head."""

    def push(self, request: Request) -> bool:
        """Never true."""
        super().push(request)
        return False


class ForgetsTheHead(FirstCome):
    """Keeps the old head when one is put back."""

    def put_back(self, request: Request) -> None:
        """To the front, but for the head."""
        head = self.head
        super().put_back(request)
        self.head = head or request


class ShortestAnswer(KeyedQueue):
    """Knows how long the answers will be."""

    def key(self, request: Request) -> float:
        """Output (tokens)."""
        return request.output_len


class LosesThePreempted(ShortestFirst):
    """Drops what is put back."""

    def put_back(self, request: Request) -> None:
        """Nowhere."""


class InASet(FirstCome):
    """Keeps no order: whatever a set gives first goes first."""

    def pop(self) -> Request:
        """Return any."""
        request = next(iter(set(self._requests)))
        self._requests.remove(request)
        self.head = next(iter(set(self._requests)), None)
        return request

    def push(self, request: Request) -> bool:
        """Into the set."""
        self._requests.append(request)
        self.head = next(iter(set(self._requests)))
        return self.head is request

    def put_back(self, request: Request) -> None:
        """Into the set."""
        self.push(request)

    def goes_first(self, request: Request) -> bool:
        """Whether a set would give it first."""
        return next(iter({*self._requests, request})) is request

    def __iter__(self) -> Iterator[Request]:
        return iter(set(self._requests))


class OneForAll(FirstCome):
    """All instances have the same list."""

    shared: ClassVar[deque[Request]] = deque()

    def __init__(self) -> None:
        super().__init__()
        self._requests = self.shared


class Ages(KeyedQueue):
    """The longest first; once the queue is long the shortest, and those that wait change over."""

    def key(self, request: Request) -> float:
        """Minus the prompt (tokens)."""
        return -request.prompt_len

    def push(self, request: Request) -> bool:
        """Sort the other way round at every fifth."""
        if len(self._heap) % 5 == 4:
            self._heap = sorted((-key, number, r) for key, number, r in self._heap)
        return super().push(request)


class PreemptsWhomItLikes(FirstCome):
    """Names a victim that does not run."""

    def victim(self, running: Any) -> Request:
        """The head."""
        return self.head or super().victim(running)


ORDER = "no_request_is_lost_and_the_head_is_the_first"
WRONG_QUEUES = [
    (SaysLast, ORDER, "push returns False; the newcomer is head: True"),
    (ForgetsTheHead, ORDER, "the head is not the first in order"),
    (LosesThePreempted, ORDER, "the length is not that of its requests"),
    (Ages, ORDER, "those that wait change places"),
    (PreemptsWhomItLikes, ORDER, "the victim is not running"),
    (
        ShortestAnswer,
        "the_order_does_not_depend_on_how_long_an_answer_will_be",
        "the answers decide the order",
    ),
    (
        InASet,
        "the_order_does_not_depend_on_that_of_a_set",
        "the hash of a request decides the order|change places",
    ),
    (OneForAll, "two_queues_share_nothing", "waits in another too"),
]


@pytest.mark.parametrize(("wrong", "law", "message"), WRONG_QUEUES, ids=lambda v: str(v)[-40:])
def test_the_queue_contract_notices(wrong: type, law: str, message: str) -> None:
    """One law of it at least, in words that say what is wrong."""
    broken(QueueContract, law, message, queue=wrong)


@pytest.mark.parametrize("wrong", [SaysLast, LosesThePreempted])
def test_simulations_notice_wrong_queues_too(wrong: type) -> None:
    """Heads that are not told of start late, and lost requests never end."""
    with pytest.raises(AssertionError):
        QueueContract().test_resolutions_agree_with_every_scheduler(queue=wrong, num_kv_blocks=13)


# --- routers -------------------------------------------------------------------------------------

Views = Sequence[InstanceView]


class FirstOfEquals(LeastLoaded):
    """Feeds the first instance of an idle cluster only."""

    def choose(self, request: Request, instances: Views, now: float) -> int | None:
        """The first with the fewest tokens."""
        return min(range(len(instances)), key=lambda k: instances[k].load_tokens)


class FromASet(LeastLoaded):
    """Takes the first with few tokens that a set gives."""

    def choose(self, request: Request, instances: Views, now: float) -> int | None:
        """The least loaded, ties by a set's order."""
        chosen = min(set(instances), key=lambda view: view.load_tokens)
        return list(instances).index(chosen)


class CountsInItsClass(RoundRobin):
    """All routers of a process go round together."""

    turn: ClassVar[int] = 0

    def choose(self, request: Request, instances: Views, now: float) -> int | None:
        """The next in the common ring."""
        CountsInItsClass.turn += 1
        return CountsInItsClass.turn % len(instances)


class Throws(RoundRobin):
    """Draws from the stream of the whole process."""

    def choose(self, request: Request, instances: Views, now: float) -> int | None:
        """Any."""
        return random.randrange(len(instances))


class ReadsAnswers(RoundRobin):
    """Sends long answers to the last instance."""

    def choose(self, request: Request, instances: Views, now: float) -> int | None:
        """The last, or the next in the ring."""
        return (
            len(instances) - 1
            if request.output_len > 40
            else super().choose(request, instances, now)
        )


class Remembers(RoundRobin):
    """Goes on to an instance that may be gone."""

    def choose(self, request: Request, instances: Views, now: float) -> int | None:
        """The next of the most there ever were."""
        self._most = max(getattr(self, "_most", 0), len(instances))
        self._next += 1
        return self._next % self._most


class Hesitates(LeastLoaded):
    """Keeps requests back until an instance is busy."""

    def choose(self, request: Request, instances: Views, now: float) -> int | None:
        """None while all are idle."""
        busy = any(view.load_tokens for view in instances)
        return super().choose(request, instances, now) if busy else None


class Writes(RoundRobin):
    """Cuts the request to what it likes."""

    def choose(self, request: Request, instances: Views, now: float) -> int | None:
        """The next in the ring."""
        request.prompt_len = min(request.prompt_len, 20)
        return super().choose(request, instances, now)


class ByTheClock(RoundRobin):
    """Changes its mind about a pending request when asked again: one try in two fails."""

    def choose(self, request: Request, instances: Views, now: float) -> int | None:
        """None the first time."""
        self._next += 1
        loaded = any(view.load_tokens for view in instances)
        return None if loaded and self._next % 2 else self._next % len(instances)


SAME = "the_same_reports_give_the_same_choices"
WRONG_ROUTERS = [
    (FirstOfEquals, "equal_instances_get_equal_shares", "2 equal instances get"),
    (
        FromASet,
        "choices_do_not_depend_on_the_order_of_a_set",
        "the hash of an instance or of a request decides",
    ),
    (CountsInItsClass, SAME, "a second router chooses otherwise"),
    (Throws, SAME, "it draws from `random` or `np.random`"),
    (
        ReadsAnswers,
        "choices_do_not_depend_on_how_long_an_answer_will_be",
        "the answers decide",
    ),
    (Remembers, "an_idle_instance_gets_the_request", "is not the index of one of"),
    (Hesitates, "an_idle_instance_gets_the_request", "is left pending in an idle cluster"),
    (Hesitates, "resolutions_agree_in_a_crowd", "requests are left and nothing happens"),
    (Writes, SAME, "a router must not change the request"),
    (ByTheClock, "resolutions_agree_in_a_crowd", "requests|requests are left"),
]


@pytest.mark.parametrize(("wrong", "law", "message"), WRONG_ROUTERS, ids=lambda v: str(v)[-40:])
def test_the_router_contract_notices(wrong: type, law: str, message: str) -> None:
    """One law of it at least, in words that say what is wrong."""
    given = {"count": 2} if "shares" in law else {}
    broken(RouterContract, law, message, router=wrong, **given)
