"""The contract of schedulers: `simcluster.sched.Scheduler`."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any, Final

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from simcluster.config import SchedulerConfig
from simcluster.kvcache import BlockLayout, BlockPool, LimitedGroup
from simcluster.runs.simulate import run
from simcluster.sched import QUEUES, SCHEDULERS, Scheduler
from simcluster.strategies import NoDG, PaDG
from simcluster.testing.contracts.base import (
    ASKS,
    CROWD,
    OTHER_OUTPUTS,
    OTHERWISE,
    PREFIXES,
    REQUESTS,
    Ask,
    Asked,
    agreeing_run,
    crowd,
    laws,
    registered,
    turned,
)
from simcluster.testing.laws import require
from simcluster.testing.toy import (
    AHEAD,
    ENGINES,
    MAX_MODEL_LEN,
    STRICT,
    TOYS,
    assert_same,
    toy_environment,
    toy_workload,
    with_room,
)
from simcluster.testing.watch import check_blocks, check_counts, check_plan, check_stop

_MOST_STEPS = 4000
PLAIN: Final = BlockLayout(16)
"""Blocks of a sequence in a model whose layers all keep all tokens."""


@dataclass(frozen=True)
class Limits:
    """Room of a scheduler that is tried without a clock."""

    max_num_seqs: int
    """Sequences at once."""
    chunk_tokens: int
    """Token budget of a step where prompts are split."""
    num_blocks: int
    host_blocks: int
    """KV blocks of 16 tokens on the GPU, and in host memory."""
    queue: str
    """A key of `simcluster.sched.QUEUES`."""
    layout: BlockLayout = PLAIN
    """Blocks of a sequence; where they are more than a plain one's, so are those of the pools."""

    def make(self, scheduler: type[Scheduler]) -> Scheduler:
        """Return a scheduler with this room and an empty pool."""
        tokens = max(self.chunk_tokens, self.max_num_seqs)
        plain = PLAIN.prompt_blocks(MAX_MODEL_LEN)
        larger = -(-self.layout.prompt_blocks(MAX_MODEL_LEN) // plain)
        return scheduler(
            SchedulerConfig(
                max_num_seqs=self.max_num_seqs,
                max_num_batched_tokens=tokens if scheduler.splits_prompts else MAX_MODEL_LEN,
            ),
            BlockPool(self.num_blocks * larger, 16, 0.01, self.layout),
            host=BlockPool(self.host_blocks * larger, 16, 0.0, self.layout)
            if self.host_blocks
            else None,
            queue=QUEUES[self.queue](),
        )


LIMITS: st.SearchStrategy[Limits] = st.builds(
    Limits,
    st.sampled_from([2, 3, 8]),
    st.sampled_from([9, 33, 160]),
    st.sampled_from([10, 13, 64]),
    st.sampled_from([0, 6, 200]),
    st.deferred(lambda: st.sampled_from(list(QUEUES))),
    st.sampled_from(
        [
            PLAIN,
            BlockLayout(16, 1, (LimitedGroup(3, 2, 4),)),
            BlockLayout(16, 0, (LimitedGroup(1, 2, 10),)),
            BlockLayout(16, 2, (LimitedGroup(1, 1, 1),)),
        ]
    ),
)
"""Much room, or little, so that requests are preempted."""
TIGHT: Final = Limits(3, 33, 13, 0, "first-come")
"""Little room."""
ROOMY: Final = Limits(8, 33, 64, 0, "first-come")
"""Room for most of a crowd."""

Step = tuple[int, str, int, int, tuple[tuple[int, int], ...]]


class Driven:
    """A scheduler taken from step to step without a clock; what it decided is written down.

    Parameters
    ----------
    scheduler : Scheduler
        What is tried; empty.
    asks : list of Ask
        What arrives, in order.
    hashed : callable, optional
        What a request hashes to, by its number.

    Attributes
    ----------
    steps : list of tuple
        Number, kind, decodes, context and chunks (request, tokens) of each step.
    first_end : int
        Number of the step at which the first request ended.
    """

    def __init__(self, scheduler: Scheduler, asks: list[Ask], hashed: Any = lambda k: k) -> None:
        self.scheduler = scheduler
        self.steps: list[Step] = []
        self.first_end = _MOST_STEPS
        self._coming = [(a.step, a.request(k, hashed(k))) for k, a in enumerate(asks)][::-1]
        self._asked = len(asks)
        self._ended = 0
        self._now = 0

    def one_step(self) -> bool:
        """Do a step, or wait for the next arrival; return whether anything is left to do."""
        scheduler = self.scheduler
        while self._coming and self._coming[-1][0] <= self._now:
            scheduler.add(self._coming.pop()[1])
        plan = scheduler.schedule(float(self._now))
        check_counts(scheduler)
        check_blocks(scheduler)
        if plan is None:
            check_stop(scheduler)
            if not self._coming:
                require(self._ended == self._asked, "it stopped, and not all requests have ended")
                return False
            self._now = self._coming[-1][0]
            return True
        check_plan(scheduler, plan)
        chunks = tuple((request.request_id, tokens) for request, tokens in plan.chunks)
        context = plan.context_tokens if plan.num_decodes else 0
        self.steps.append((self._now, plan.kind, plan.num_decodes, context, chunks))
        self._now += 1
        outcome = scheduler.complete(plan, 1, float(self._now))
        if outcome.finished and self.first_end == _MOST_STEPS:
            self.first_end = self._now
        self._ended += len(outcome.finished)
        require(self._now < _MOST_STEPS, f"not all requests have ended after {_MOST_STEPS} steps")
        return True

    def to_the_end(self) -> Driven:
        """Do all steps."""
        while self.one_step():
            pass
        return self


@st.composite
def deployments(draw: st.DrawFn) -> tuple[str, dict[str, Any], int]:
    """Draw a strategy's kind, its keys but the scheduler's, and the tokens of a chunk."""
    pp_size = draw(st.sampled_from([1, 1, 1, 2]))
    blocks = draw(st.sampled_from([None, 10, 13, 24]))
    keys: dict[str, Any] = {
        "name": "contract",
        "instances": draw(st.integers(1, 2)),
        "pp_size": pp_size,
        "num_kv_blocks": None if blocks is None else pp_size * blocks,
        "max_num_seqs": draw(st.sampled_from([1, 3, 8, 64])),
        "prefix_caching": draw(st.booleans()),
        "preemption": draw(st.sampled_from(["recompute", "swap"])),
        # Room for everything, or for one sequence or two.
        "swap_bytes": draw(st.sampled_from([4.0 * 2**30, 200_000.0])),
        "queue": draw(st.sampled_from(list(QUEUES))),
    }
    kind = draw(st.sampled_from(["nodg", "nodg", "padg"]))
    if kind == "nodg":
        keys["router"] = draw(st.sampled_from(["least-loaded", "shared-queue"]))
    chunk = max(keys["max_num_seqs"], draw(st.sampled_from([9, 16, 33, 128])))
    return kind, keys, chunk


def strategy_with(scheduler: type[Scheduler], name: str, drawn: tuple[str, Any, int]) -> Any:
    """Return the strategy of `deployments` with `scheduler`, registered as `name`."""
    kind, keys, chunk = drawn
    if scheduler.splits_prompts:
        keys = {**keys, "chunk_size": chunk}
    return {"nodg": NoDG, "padg": PaDG}[kind](**keys, scheduler=name)


class SchedulerContract:
    """Laws of every scheduler; derive a test class with the fixture `scheduler`.

    - Results at the resolutions span, step and kernel are the same bits: a plan holds for as long
      as it says, and `add` returns False only where the arrival changes nothing.
    - Requests, tokens and KV blocks are conserved, and the counts that routers see are right.
    - An instance does not stop beside work that fits, and every request ends.
    - No decision depends on how long an answer will be, or on the order of a set.
    - Instances share nothing: each does what it would do alone, every time.

    Examples
    --------
    ::

        class TestMine(SchedulerContract):
            @pytest.fixture
            def scheduler(self):
                return Mine
    """

    @pytest.fixture
    def scheduler(self) -> type[Scheduler]:
        """Return the class that is tested; override it."""
        raise NotImplementedError("give the contract a fixture `scheduler` that returns the class")

    @pytest.mark.parametrize("num_kv_blocks", [None, 13])
    def test_resolutions_agree_in_a_crowd(
        self, scheduler: type[Scheduler], num_kv_blocks: int | None
    ) -> None:
        """Heads that do not fit, newcomers before them, under every queue; planned ahead or not."""
        loads = [crowd(60), crowd(40, gap_s=0.01)]
        for queue in QUEUES:
            keys: dict[str, Any] = {"queue": queue, "num_kv_blocks": num_kv_blocks}
            keys |= {"name": "contract", "instances": 1, "max_num_seqs": 8}
            with registered(SCHEDULERS, scheduler) as name:
                strategy = strategy_with(scheduler, name, ("nodg", keys, 32))
                for engine, load in itertools.product((None, AHEAD), loads):
                    agreeing_run(toy_environment(engine), strategy, load)

    @laws(60)
    @given(
        drawn=deployments(),
        requests=REQUESTS,
        prefixes=PREFIXES,
        engine=st.sampled_from(ENGINES),
        model=st.sampled_from(TOYS),
    )
    def test_resolutions_agree(
        self,
        scheduler: type[Scheduler],
        drawn: tuple[str, dict[str, Any], int],
        requests: Asked,
        prefixes: list[tuple[int, int]] | None,
        engine: Any,
        model: Any,
    ) -> None:
        """In deployments of any shape, and the laws of any run hold."""
        with registered(SCHEDULERS, scheduler) as name:
            strategy = with_room(strategy_with(scheduler, name, drawn), model)
            where = toy_environment(engine, STRICT, model)
            agreeing_run(where, strategy, toy_workload(requests, prefixes=prefixes))

    @laws(80)
    @given(asks=ASKS, limits=LIMITS)
    @example(asks=CROWD, limits=TIGHT)
    def test_nothing_is_lost_and_no_work_that_fits_waits(
        self, scheduler: type[Scheduler], asks: list[Ask], limits: Limits
    ) -> None:
        """Step by step: limits, blocks, counts; it stops when all has ended, and empty."""
        made = limits.make(scheduler)
        Driven(made, asks).to_the_end()
        require(not made.has_unfinished, "requests are left")
        require(made.num_waiting + made.num_running == 0, "requests are left")
        require(made.num_tokens == 0, "tokens of requests that have ended are left")
        require(made.pool.used_blocks == 0, "KV blocks of requests that have ended are left")

    @laws(80)
    @given(asks=ASKS, limits=LIMITS, outputs=OTHER_OUTPUTS)
    @example(asks=CROWD, limits=TIGHT, outputs=OTHERWISE)
    @example(asks=CROWD, limits=ROOMY, outputs=OTHERWISE)
    def test_decisions_do_not_depend_on_how_long_an_answer_will_be(
        self, scheduler: type[Scheduler], asks: list[Ask], limits: Limits, outputs: list[int]
    ) -> None:
        """With other answers the steps are the same until the first of them ends."""
        others = [
            Ask(ask.step, ask.prompt_len, output, ask.priority)
            for ask, output in zip(asks, outputs, strict=False)
        ]
        one, other = (
            Driven(limits.make(scheduler), these).to_the_end() for these in (asks, others)
        )
        until = min(one.first_end, other.first_end)
        mine, theirs = ([s for s in run.steps if s[0] < until] for run in (one, other))
        require(mine == theirs, f"the answers decide before one has ended: {mine}, {theirs}")

    @laws(40)
    @given(asks=ASKS, limits=LIMITS)
    @example(asks=CROWD, limits=TIGHT)
    def test_decisions_do_not_depend_on_the_order_of_a_set(
        self, scheduler: type[Scheduler], asks: list[Ask], limits: Limits
    ) -> None:
        """Requests that hash to other numbers are scheduled the same."""
        one = Driven(limits.make(scheduler), asks).to_the_end()
        other = Driven(limits.make(scheduler), asks, turned).to_the_end()
        require(one.steps == other.steps, "the hash of a request decides")

    @laws(40)
    @given(asks=ASKS, others=ASKS, limits=LIMITS)
    @example(asks=CROWD, others=CROWD[5:], limits=TIGHT)
    def test_two_of_them_share_nothing(
        self, scheduler: type[Scheduler], asks: list[Ask], others: list[Ask], limits: Limits
    ) -> None:
        """One does the same alone and beside another with requests of its own."""
        alone = Driven(limits.make(scheduler), asks).to_the_end()
        one, other = (Driven(limits.make(scheduler), these) for these in (asks, others))
        busy = [one, other]
        while busy:
            busy = [driven for driven in busy if driven.one_step()]
        require(one.steps == alone.steps, "another scheduler changes what this one does")

    def test_equal_instances_with_equal_requests_stay_equal(
        self, scheduler: type[Scheduler]
    ) -> None:
        """Of two requests alike at a time each instance gets one, and they end at the same time."""
        load = crowd(40)
        twice = toy_workload(
            [
                (gap if first else 0.0, prompt, output)
                for gap, prompt, output in zip(
                    [load.arrival_s[0], *(load.arrival_s[1:] - load.arrival_s[:-1])],
                    load.prompt_len.tolist(),
                    load.output_len.tolist(),
                    strict=True,
                )
                for first in (True, False)
            ]
        )
        keys = {"name": "contract", "instances": 2, "router": "round-robin", "num_kv_blocks": 13}
        with registered(SCHEDULERS, scheduler) as name:
            strategy = strategy_with(scheduler, name, ("nodg", {**keys, "max_num_seqs": 8}, 32))
            requests = run(toy_environment(), strategy, twice).columns["requests"]
        for stamp in ("scheduled_s", "first_token_s", "last_token_s"):
            one, other = requests[stamp][::2].tolist(), requests[stamp][1::2].tolist()
            require(one == other, f"{stamp} differs between two equal instances")

    def test_the_same_run_gives_the_same_result(self, scheduler: type[Scheduler]) -> None:
        """Nothing is kept from one run to the next."""
        keys = {"name": "contract", "instances": 1, "num_kv_blocks": 13, "max_num_seqs": 8}
        with registered(SCHEDULERS, scheduler) as name:
            strategy = strategy_with(scheduler, name, ("nodg", keys, 32))
            first, second = (run(toy_environment(), strategy, crowd(60)) for _ in range(2))
        assert_same(first, second)
