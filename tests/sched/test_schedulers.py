"""Schedulers and the decode batch against programs that do everything the slow way."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simcluster.catalog.layers import Reach
from simcluster.config import SchedulerConfig
from simcluster.errors import InvariantError
from simcluster.kvcache import BlockLayout, BlockPool, LimitedGroup
from simcluster.request import Request, RequestStatus
from simcluster.sched import QUEUES, SCHEDULERS, DecodeBatch, Scheduler, StepPlan
from simcluster.testing.examples import examples


def ceil_div(a: int, b: int) -> int:
    """Quotient, rounded up."""
    return -(-a // b)


# --- the decode batch ----------------------------------------------------------------------------


@dataclass
class Sequence:
    """A decoding sequence that is stepped by itself."""

    request: Request
    computed: int
    output: int

    def left(self) -> int:
        """Tokens to the end of the answer."""
        return self.request.output_len - self.output


@dataclass
class SlowBatch:
    """Every sequence counts for itself; the answers are found by trying."""

    layout: BlockLayout
    reach: Reach
    sequences: list[Sequence] = field(default_factory=list)

    def blocks(self, ahead: int = 0) -> int:
        """Blocks of all sequences after so many more steps."""
        held = 0
        for sequence in self.sequences:
            blocks = ceil_div(sequence.computed + ahead, self.layout.block_size)
            held += self.layout.full * blocks
            held += sum(weight * min(blocks, most) for weight, most, _ in self.layout.limited)
        return held

    def reached(self, ahead: int) -> int:
        """Tokens attended to in the step after so many more, each sequence as far as it reaches."""
        seen = 0
        for sequence in self.sequences:
            tokens = range(sequence.computed + ahead + 1)
            width = self.reach.tokens
            own = len(tokens) - 1
            first = own - own % width if self.reach.chunked else own - width + 1
            seen += len([token for token in tokens if token >= first])
        return seen

    def steps_with(self, free: int, limit: int) -> int:
        """Try one step more until it does not fit."""
        steps = 0
        while steps < limit and self.blocks(steps + 1) - self.blocks() <= free:
            steps += 1
        return steps

    def step(self) -> list[int]:
        """One step; ids of those who end."""
        for sequence in self.sequences:
            sequence.computed += 1
            sequence.output += 1
        ended = [s.request.request_id for s in self.sequences if s.left() == 0]
        self.sequences = [s for s in self.sequences if s.left()]
        return ended


def check_batch(batch: DecodeBatch, slow: SlowBatch, free: int, limit: int) -> None:
    """All that the batch knows, against the sequences themselves."""
    assert batch.size == len(slow.sequences)
    assert [r.request_id for r in batch] == [s.request.request_id for s in slow.sequences]
    for sequence in slow.sequences:
        assert sequence.request in batch
        assert batch.tokens_of(sequence.request) == sequence.computed
    if not slow.sequences:
        return
    assert batch.context_tokens == sum(s.computed + 1 for s in slow.sequences)
    assert batch.steps_to_next_end() == min(s.left() for s in slow.sequences)
    for steps in (0, 1, limit, 3 * limit):
        assert batch.blocks_needed(steps) == slow.blocks(steps) - slow.blocks()
    assert batch.steps_with(free, limit) == slow.steps_with(free, limit)
    reached = [slow.reached(ahead) for ahead in range(limit)]
    assert batch.window_tokens(limit).tolist() == reached
    taken = [slow.blocks(steps) - slow.blocks() for steps in range(1, limit + 1)]
    assert batch.blocks_by_step(limit) == taken
    assert batch.size * batch.most_blocks_per_step >= taken[0]


@examples(200)
@given(
    data=st.data(),
    layout=st.builds(
        BlockLayout,
        st.sampled_from([1, 2, 3, 4, 16]),
        st.integers(1, 3),
        st.lists(
            st.builds(LimitedGroup, st.integers(1, 3), st.integers(1, 9), st.just(9)), max_size=2
        ).map(tuple),
    ),
    reach=st.builds(Reach, st.integers(1, 50), st.booleans()),
    changes=st.lists(
        st.sampled_from(["add", "add", "step", "step", "remove", "again"]), min_size=1, max_size=25
    ),
)
def test_the_decode_batch_is_its_sequences(
    data: st.DataObject, layout: BlockLayout, reach: Reach, changes: list[str]
) -> None:
    """Sums, heap and block counts stand for sequences that join, step, end, leave and come back."""
    batch, slow = DecodeBatch(layout, reach), SlowBatch(layout, reach)
    gone: list[Request] = []
    for number, change in enumerate(changes):
        if change == "add":
            output_len = data.draw(st.integers(2, 40))
            request = Request(number, 0.0, data.draw(st.integers(1, 60)), output_len)
            request.num_computed_tokens = request.prompt_len
            request.num_output_tokens = data.draw(st.integers(1, output_len - 1))
            batch.add(request)
            slow.sequences.append(
                Sequence(request, request.num_computed_tokens, request.num_output_tokens)
            )
        elif change == "step" and slow.sequences:
            steps = data.draw(st.integers(1, batch.steps_to_next_end()))
            ended = [i for _ in range(steps) for i in slow.step()]
            assert sorted(r.request_id for r in batch.advance(steps)) == sorted(ended)
        elif change == "remove" and slow.sequences:
            sequence = slow.sequences.pop(data.draw(st.integers(0, len(slow.sequences) - 1)))
            batch.remove(sequence.request)
            assert sequence.request.num_computed_tokens == sequence.computed
            assert sequence.request.num_output_tokens == sequence.output
            gone.append(sequence.request)
        elif change == "again" and gone:
            request = gone.pop()
            request.num_computed_tokens = request.prompt_len + request.num_output_tokens
            request.num_output_tokens += 1
            if request.num_output_tokens < request.output_len:
                batch.add(request)
                slow.sequences.append(
                    Sequence(request, request.num_computed_tokens, request.num_output_tokens)
                )
        check_batch(batch, slow, data.draw(st.integers(0, 30)), data.draw(st.integers(1, 40)))


# --- schedulers ----------------------------------------------------------------------------------


@dataclass
class Job:
    """A request as the slow schedulers see it."""

    number: int
    prompt: int
    length: int
    priority: int = 0
    output: int = 0
    computed: int = 0
    decoding: bool = False

    def goal(self) -> int:
        """Tokens its prefill must compute."""
        return self.prompt + self.output


@dataclass
class SlowPlan:
    """What one step computes: decoding jobs, and jobs with a chunk."""

    decodes: list[Job]
    chunks: list[tuple[Job, int]]


KEYS = {
    "shortest-first": lambda job: (job.prompt, job.number),
    "priority": lambda job: (job.priority, job.number),
}


@dataclass
class SlowScheduler:
    """The rules of vLLM (V0) and of Sarathi-Serve, one job and one step at a time.

    Blocks are never counted incrementally: those in use are summed over the running jobs, those in
    host memory over the swapped ones. The queue is a list that is sorted whenever it changes.
    """

    config: SchedulerConfig
    num_blocks: int
    block_size: int
    watermark_blocks: int
    chunked: bool
    queue: str = "first-come"
    host_blocks: int = 0
    waiting: list[Job] = field(default_factory=list)
    running: list[Job] = field(default_factory=list)
    swapped: list[Job] = field(default_factory=list)
    num_preemptions: int = 0

    def add(self, job: Job, place: int | None = None) -> None:
        """Let a job wait, at the end of the queue or at this place of it, or by its key."""
        self.waiting.insert(len(self.waiting) if place is None else place, job)
        if self.queue in KEYS:
            self.waiting.sort(key=KEYS[self.queue])

    def used(self) -> int:
        """Blocks in use: what is computed while decoding, the whole prompt while prefilling."""
        return sum(
            ceil_div(j.computed if j.decoding else j.goal(), self.block_size) for j in self.running
        )

    def decode_need(self) -> int:
        """Blocks that the next token of every decoding job takes."""
        return sum(1 for j in self.running if j.decoding and j.computed % self.block_size == 0)

    def free(self) -> int:
        """Blocks not in use."""
        return self.num_blocks - self.used()

    def above_watermark(self, need: int) -> bool:
        """Whether so many blocks may be taken: above the watermark, or by the only job."""
        if not self.running:
            return need <= self.num_blocks
        return self.free() - need >= self.watermark_blocks

    def fits(self, job: Job) -> bool:
        """Admission of a prompt, which leaves the decodes of the step their blocks."""
        need = ceil_div(job.goal(), self.block_size)
        beside = not self.running or need <= self.free() - self.decode_need()
        return self.above_watermark(need) and (not self.chunked or beside)

    def swap_in(self) -> None:
        """Take swapped jobs back, in order, where their step and those of the others fit too."""
        while self.swapped and len(self.running) < self.config.max_num_seqs:
            need = ceil_div(self.swapped[0].computed + 1, self.block_size)
            if not self.above_watermark(need + self.decode_need()):
                return
            self.running.append(self.swapped.pop(0))

    def victim(self) -> Job:
        """Who is preempted: the newest, by priority the newest of the least important ones."""
        if self.queue == "priority":
            return max(reversed(self.running), key=lambda job: job.priority)
        return self.running[-1]

    def make_room(self) -> None:
        """Preempt until every decode can write its token; to host memory while it has room."""
        while self.decode_need() > self.free():
            victim = self.victim()
            self.running.remove(victim)
            self.num_preemptions += 1
            copied = sum(ceil_div(job.computed, self.block_size) for job in self.swapped)
            own = ceil_div(victim.computed, self.block_size)
            if victim.decoding and copied + own <= self.host_blocks:
                self.swapped.insert(0, victim)
            else:
                victim.computed, victim.decoding = 0, False
                self.add(victim, 0)

    def plan(self) -> SlowPlan:
        """What the next step computes."""
        plan = self.chunked_plan() if self.chunked else self.separate_plan()
        if not plan.decodes and not plan.chunks:
            plan = self.chunked_plan() if self.chunked else self.separate_plan()
        return plan

    def separate_plan(self) -> SlowPlan:
        """Prefills if any can be admitted, else decodes."""
        chunks: list[tuple[Job, int]] = []
        self.swap_in()
        while self.waiting and not self.swapped and len(self.running) < self.config.max_num_seqs:
            job = self.waiting[0]
            tokens = sum(n for _, n in chunks)
            too_many = tokens + job.goal() > self.config.max_num_batched_tokens
            if (chunks and too_many) or not self.fits(job):
                break
            self.running.append(self.waiting.pop(0))
            chunks.append((job, job.goal()))
        if chunks:
            return SlowPlan([], chunks)
        self.make_room()
        return SlowPlan(list(self.running), [])

    def chunked_plan(self) -> SlowPlan:
        """All decodes, then prompts begun, then new ones, within the token budget."""
        self.swap_in()
        self.make_room()
        decodes = [j for j in self.running if j.decoding]
        budget = self.config.max_num_batched_tokens - len(decodes)
        chunks: list[tuple[Job, int]] = []
        for job in self.running:
            if not job.decoding and budget:
                chunks.append((job, min(job.goal() - job.computed, budget)))
                budget -= chunks[-1][1]
        while (
            budget
            and self.waiting
            and not self.swapped
            and len(self.running) < self.config.max_num_seqs
        ):
            job = self.waiting[0]
            if not self.fits(job):
                break
            self.running.append(self.waiting.pop(0))
            chunks.append((job, min(job.goal(), budget)))
            budget -= chunks[-1][1]
        return SlowPlan(decodes, chunks)

    def step(self, plan: SlowPlan) -> list[int]:
        """Do the step; numbers of the jobs that end."""
        ended: list[int] = []
        for job in plan.decodes:
            job.computed += 1
            job.output += 1
        for job, tokens in plan.chunks:
            job.computed += tokens
            if job.computed == job.goal():
                job.output += 1
                job.decoding = True
        for job in list(self.running):
            if job.output == job.length:
                self.running.remove(job)
                ended.append(job.number)
        return ended


def make_scheduler(
    name: str,
    *,
    max_num_seqs: int,
    max_num_batched_tokens: int,
    num_blocks: int,
    block_size: int = 4,
    watermark: float = 0.0,
    queue: str = "first-come",
    host_blocks: int = 0,
) -> Scheduler:
    """Return a scheduler with its own pool."""
    config = SchedulerConfig(
        max_num_seqs=max_num_seqs, max_num_batched_tokens=max_num_batched_tokens
    )
    return SCHEDULERS[name](
        config,
        BlockPool(num_blocks, block_size, watermark),
        host=BlockPool(host_blocks, block_size) if host_blocks else None,
        queue=QUEUES[queue](),
    )


def check_plan(plan: StepPlan | None, slow: SlowPlan, config: SchedulerConfig) -> None:
    """The same step, within the limits."""
    if plan is None:
        assert not slow.decodes
        assert not slow.chunks
        return
    assert plan.num_decodes == len(slow.decodes)
    if slow.decodes:
        assert plan.context_tokens == sum(j.computed + 1 for j in slow.decodes)
    chunks = [(request.request_id, tokens) for request, tokens in plan.chunks]
    assert chunks == [(job.number, tokens) for job, tokens in slow.chunks]
    kinds = {(True, True): "mixed", (True, False): "decode", (False, True): "prefill"}
    assert plan.kind == kinds[bool(slow.decodes), bool(slow.chunks)]
    assert plan.num_decodes + len(plan.chunks) <= config.max_num_seqs
    if plan.chunks and not (len(chunks) == 1 and plan.chunks[0][0].num_preemptions):
        assert plan.num_decodes + plan.prefill_tokens <= config.max_num_batched_tokens


@examples(300)
@given(
    data=st.data(),
    name=st.sampled_from(["prefill-priority", "chunked"]),
    queue=st.sampled_from(["first-come", *KEYS]),
    host_blocks=st.sampled_from([0, 6, 11, 200]),
    max_num_seqs=st.sampled_from([1, 2, 3, 8]),
    budget=st.sampled_from([8, 12, 40, 200]),
    extra_blocks=st.sampled_from([0, 1, 5, 40]),
    watermark=st.sampled_from([0.0, 0.1, 0.3]),
    jobs=st.lists(
        st.tuples(st.integers(0, 20), st.integers(1, 40), st.integers(1, 24), st.integers(0, 2)),
        min_size=1,
        max_size=14,
    ),
)
def test_schedulers_decide_like_the_slow_ones(
    data: st.DataObject,
    name: str,
    queue: str,
    host_blocks: int,
    max_num_seqs: int,
    budget: int,
    extra_blocks: int,
    watermark: float,
    jobs: list[tuple[int, int, int, int]],
) -> None:
    """Every plan, every preemption and all books agree; a plan holds for all its steps."""
    chunked = name == "chunked"
    if not chunked:
        budget = max(budget, 40)  # the longest prompt fits, as the deployment makes sure
    num_blocks = ceil_div(40 + 24, 4) + extra_blocks
    fast = make_scheduler(
        name,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=budget,
        num_blocks=num_blocks,
        watermark=watermark,
        queue=queue,
        host_blocks=host_blocks,
    )
    kept = int(watermark * num_blocks)
    slow = SlowScheduler(fast.config, num_blocks, 4, kept, chunked, queue, host_blocks)
    to_come = sorted((at, k, *rest) for k, (at, *rest) in enumerate(jobs))
    ended: list[int] = []
    now = 0
    while to_come or fast.has_unfinished:
        while to_come and (to_come[0][0] <= now or not fast.has_unfinished):
            _, number, prompt, length, priority = to_come.pop(0)
            request = Request(number, 0.0, prompt, length)
            request.priority = priority
            job = Job(number, prompt, length, priority)
            slow.add(job)
            assert fast.add(request) == (slow.waiting[0] is job), "whether it is the head"
        plan, slow_plan = fast.schedule(float(now)), slow.plan()
        check_plan(plan, slow_plan, fast.config)
        assert plan is not None, "stuck"
        steps = data.draw(st.integers(1, plan.max_steps)) if plan.max_steps > 1 else 1
        shapes = [plan.shape(step=step) for step in range(steps)]
        last = plan.last_step() if plan.last_tokens and steps == plan.max_steps else None
        equal = steps if last is None else steps - 1
        outcome = fast.complete(plan, equal, float(now + equal))
        if last is not None:
            assert not outcome.prefilled
            assert not outcome.finished
            outcome = fast.complete(last, 1, float(now + steps))
        for step, shape in enumerate(shapes):
            if step:
                slow_plan = slow.plan()
                assert [(n, job.computed) for job, n in slow_plan.chunks] == list(shape.chunks)
                assert len(slow_plan.decodes) == plan.num_decodes == shape.num_decodes
                if step < plan.closed_steps:
                    # Nobody can join: a newcomer waits, although it would fit.
                    crowded = copy.deepcopy(slow)
                    crowded.add(Job(-1, 1, 1))
                    again = crowded.plan()
                    assert again.chunks == slow_plan.chunks
                    assert again.decodes == slow_plan.decodes
            gone = slow.step(slow_plan)
            assert not gone or step == steps - 1
        now += steps
        assert sorted(r.request_id for r in outcome.finished) == sorted(gone)
        ended += gone
        assert [r.request_id for r in fast.waiting] == [j.number for j in slow.waiting]
        assert fast.num_running == len(slow.running)
        assert [r.request_id for r in fast.swapped] == [j.number for j in slow.swapped]
        fast.swap.copied_blocks = 0
        assert fast.num_waiting == len(slow.waiting) + len(slow.swapped)
        assert fast.pool.used_blocks == slow.used()
        assert fast.num_preemptions == slow.num_preemptions
        left = sum(j.computed if j.decoding else j.goal() for j in slow.running)
        assert fast.num_tokens == left + sum(j.goal() for j in (*slow.waiting, *slow.swapped))
    assert sorted(ended) == list(range(len(jobs)))
    assert fast.pool.free_blocks == num_blocks


def run_steps(scheduler: Scheduler, count: int) -> list[StepPlan]:
    """Plan and complete `count` single steps."""
    plans = []
    for now in range(count):
        plan = scheduler.schedule(float(now))
        if plan is None:
            break
        scheduler.complete(plan, 1, now + 1.0)
        plans.append(plan)
    return plans


def chunk_list(plan: StepPlan) -> list[tuple[int, int]]:
    """Request ids and tokens of the chunks."""
    return [(request.request_id, tokens) for request, tokens in plan.chunks]


def test_prefill_comes_first_and_alone() -> None:
    """A newcomer interrupts the decodes: its prefill is a step without them (vLLM V0)."""
    scheduler = make_scheduler(
        "prefill-priority", max_num_seqs=8, max_num_batched_tokens=100, num_blocks=100
    )
    scheduler.add(Request(0, 0.0, 10, 9))
    run_steps(scheduler, 3)
    scheduler.add(Request(1, 0.0, 20, 9))
    plans = run_steps(scheduler, 2)
    assert [plan.kind for plan in plans] == ["prefill", "decode"]
    assert chunk_list(plans[0]) == [(1, 20)]
    assert plans[1].num_decodes == 2


def test_chunks_ride_with_the_decodes() -> None:
    """Sarathi: a decode never waits; the budget is one token per decode, the rest prompt."""
    scheduler = make_scheduler("chunked", max_num_seqs=8, max_num_batched_tokens=16, num_blocks=100)
    scheduler.add(Request(0, 0.0, 10, 9))
    run_steps(scheduler, 3)
    scheduler.add(Request(1, 0.0, 40, 9))
    plans = run_steps(scheduler, 4)
    assert [plan.kind for plan in plans] == ["mixed", "mixed", "mixed", "decode"]
    assert [chunk_list(plan) for plan in plans[:3]] == [[(1, 15)], [(1, 15)], [(1, 10)]]
    assert [plan.num_decodes for plan in plans] == [1, 1, 1, 2]


@pytest.mark.parametrize("name", sorted(SCHEDULERS))
def test_nobody_overtakes_in_the_queue(name: str) -> None:
    """First come, first served: a small request does not slip past a large one that waits."""
    scheduler = make_scheduler(name, max_num_seqs=8, max_num_batched_tokens=64, num_blocks=16)
    for number, prompt in enumerate([40, 40, 4]):
        scheduler.add(Request(number, 0.0, prompt, 3))
    first = scheduler.schedule(0.0)
    assert first is not None
    assert chunk_list(first) == [(0, 40)]
    assert [request.request_id for request in scheduler.waiting] == [1, 2]


@pytest.mark.parametrize("name", sorted(SCHEDULERS))
def test_the_watermark_stays_free_when_admitting(name: str) -> None:
    """Twenty blocks, a quarter kept: 12 + 3 blocks come in, a fourth does not."""
    scheduler = make_scheduler(
        name, max_num_seqs=8, max_num_batched_tokens=200, num_blocks=20, watermark=0.25
    )
    for number, prompt in enumerate([48, 12, 4]):
        scheduler.add(Request(number, 0.0, prompt, 3))
    plan = scheduler.schedule(0.0)
    assert plan is not None
    assert [number for number, _ in chunk_list(plan)] == [0, 1]


@pytest.mark.parametrize("name", sorted(SCHEDULERS))
def test_the_newest_is_preempted_and_recomputes_from_the_front(name: str) -> None:
    """Memory for two prompts and no more: the second loses its blocks, and comes back first."""
    scheduler = make_scheduler(name, max_num_seqs=8, max_num_batched_tokens=64, num_blocks=5)
    first, second, third = (Request(k, 0.0, 8, 6) for k in range(3))
    for request in (first, second, third):
        scheduler.add(request)
    run_steps(scheduler, 2)  # prefill of two (4 blocks); the decode takes the fifth for one of them
    assert second.num_preemptions == 1
    assert first.num_preemptions == third.num_preemptions == 0
    assert second.status is RequestStatus.PREEMPTED
    assert list(scheduler.waiting) == [second, third]
    assert second.num_output_tokens == 1
    plans = run_steps(scheduler, 30)
    recomputed = [plan for plan in plans if any(r is second for r, _ in plan.chunks)]
    assert chunk_list(recomputed[0])[0] == (1, 8 + 1), "prompt and what was output"
    assert first.last_token_s < second.last_token_s
    assert {first.status, second.status, third.status} == {RequestStatus.FINISHED}
    assert second.num_output_tokens == 6


def test_a_plan_with_whole_prompts_is_for_one_step() -> None:
    """Completing it twice at once is a bug of the caller."""
    scheduler = make_scheduler(
        "prefill-priority", max_num_seqs=8, max_num_batched_tokens=64, num_blocks=9
    )
    scheduler.add(Request(0, 0.0, 8, 6))
    plan = scheduler.schedule(0.0)
    assert plan is not None
    with pytest.raises(InvariantError):
        scheduler.complete(plan, 2, 1.0)


@pytest.mark.parametrize("name", sorted(SCHEDULERS))
def test_schedulers_do_not_look_at_the_output_length(name: str) -> None:
    """Two workloads that differ in answers not yet ended get the same plans."""
    rng = np.random.default_rng(3)
    prompts = rng.integers(1, 40, 12)
    plans = []
    for output_len in (20, 1000):
        scheduler = make_scheduler(name, max_num_seqs=5, max_num_batched_tokens=64, num_blocks=60)
        for number, prompt in enumerate(prompts.tolist()):
            scheduler.add(Request(number, 0.0, prompt, output_len))
        plans.append([(p.kind, p.num_decodes, chunk_list(p)) for p in run_steps(scheduler, 15)])
    assert plans[0] == plans[1]


def kinds_of(scheduler: Scheduler, arrivals: dict[int, list[tuple[int, int]]], most: int) -> str:
    """Run step by step; p, m, d for prefill, mixed and decode steps; `arrivals` by step."""
    text, number = "", 0
    for step in range(most):
        for prompt, length in arrivals.get(step, []):
            scheduler.add(Request(number, 0.0, prompt, length))
            number += 1
        plan = scheduler.schedule(float(step))
        if plan is None:
            break
        text += plan.kind[0]
        scheduler.complete(plan, 1, float(step + 1))
    return text


def delaying(**delays: Any) -> Scheduler:
    """Chunked prefill, 40 tokens a step, whose prompts wait."""
    config = SchedulerConfig(max_num_seqs=8, max_num_batched_tokens=40, **delays)
    return SCHEDULERS["chunked"](config, BlockPool(100, 4, 0.0))


@pytest.mark.parametrize(
    ("delays", "second_prompt", "expected"),
    [
        # The one that decodes began at step 0; the second comes in before step 2.
        ({}, 10, "pdmddddddd"),
        # It waits 4 steps, 2 to 5, and is computed in step 6.
        ({"prefill_wait_steps": 4, "prefill_wait_tokens": 36.0}, 10, "pdddddmddd"),
        # 10 and the decode are 11 tokens: enough, there is no wait.
        ({"prefill_wait_steps": 4, "prefill_wait_tokens": 11.0}, 10, "pdmddddddd"),
        ({"prefill_wait_steps": 4, "prefill_wait_tokens": 11.5}, 10, "pdddddmddd"),
        # Steps with decodes are counted from 0: that is step 1, and every third from there.
        ({"prefill_interval": 3}, 10, "pdddmddddd"),
        # 60 tokens take two steps, each on its turn.
        ({"prefill_interval": 3}, 60, "pdddmddmdd"),
    ],
)
def test_prompts_wait_beside_decodes_as_long_as_they_are_told_to(
    delays: dict[str, float], second_prompt: int, expected: str
) -> None:
    """By hand: one request decodes, another comes in before step 2."""
    scheduler = delaying(**delays)
    assert kinds_of(scheduler, {0: [(8, 30)], 2: [(second_prompt, 30)]}, 10) == expected


def test_waiting_prompts_go_when_others_have_made_them_enough() -> None:
    """A third prompt in step 4 fills the step: 10 + 16 + 1 = 27 tokens."""
    scheduler = delaying(prefill_wait_steps=10, prefill_wait_tokens=27.0)
    assert kinds_of(scheduler, {0: [(8, 30)], 2: [(10, 30)], 4: [(16, 30)]}, 8) == "pdddmddd"


def test_prompts_do_not_wait_where_nothing_decodes() -> None:
    """The first request ends in step 3; the second, which would wait to step 11, goes then."""
    scheduler = delaying(prefill_wait_steps=10, prefill_wait_tokens=40.0)
    assert kinds_of(scheduler, {0: [(8, 4)], 2: [(10, 4)]}, 20) == "pdddpddd"
