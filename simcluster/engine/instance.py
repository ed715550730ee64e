"""One copy of the model on its GPUs: a SimPy process around a scheduler that knows no clock."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Generator
from dataclasses import replace
from typing import Any, Final, NamedTuple, Protocol

import simpy

from simcluster.engine.clock import SCHEDULING, STEP_END, Clock, Wake
from simcluster.engine.collectives import SharedWires
from simcluster.engine.dispatcher import RankGroup
from simcluster.engine.pipeline import BatchesInFlight, BatchRun, PipelineStages
from simcluster.engine.recorder import Recorder
from simcluster.errors import InvariantError
from simcluster.request import Request
from simcluster.roofline.base import StepShape, StepTime
from simcluster.sched import Scheduler, StepOutcome, StepPlan, target
from simcluster.units import IntArray, on_grid

MAX_SPAN_STEPS: Final = 512
"""Longest run of steps planned as one event; longer ones are planned again from their end."""
MAX_PIPELINE_STEPS: Final = 64
"""The same for batches of a pipeline: steps computed ahead are lost when one of them changes."""


StopAt = Callable[["InstanceLike", list[float], int], int]
"""Where a span must stop: from the instance, the end times of its steps (s) and how many of them
have ended to the number of steps, more than those, after which the boundary must be an event."""


OnPrefill = Callable[["InstanceLike", Request, int, float], None]
"""Hears of a prefill that begins: from the instance, the request, the tokens that it will have and
the end of its first layer (s)."""


def at_the_next_boundary(instance: InstanceLike, ends: list[float], first: int) -> int:
    """Stop at the first step boundary to come: a `StopAt`."""
    return first + 1


class InstanceLike(Protocol):
    """What routers and strategies use of an instance: an `Instance`, or one with a pipeline."""

    instance_id: int
    owner: InstanceOwner
    hold_output: bool
    num_requests: int
    num_lanes: int

    @property
    def load_tokens(self) -> int:
        """Tokens of the waiting and running requests."""
        ...

    @property
    def free_blocks(self) -> int:
        """Free KV blocks where the next request would go."""
        ...

    @property
    def waiting_blocks(self) -> int:
        """KV blocks that the requests waiting where it would go will take."""
        ...

    @property
    def has_unfinished(self) -> bool:
        """Whether any request waits or runs."""
        ...

    @property
    def num_unfinished(self) -> int:
        """Requests that wait or run."""
        ...

    @property
    def stats(self) -> InstanceStats:
        """What it has done so far."""
        ...

    def cached_tokens(self, request: Request) -> int:
        """Tokens of `request` that it would find in the KV cache here."""
        ...

    def blocks_for(self, num_tokens: int) -> int:
        """KV blocks that hold `num_tokens` tokens of one sequence."""
        ...

    def decode_step_of(self, lane: int) -> int:
        """Decode steps of `lane` done at its last step boundary."""
        ...

    def lane_of(self, request: Request) -> int:
        """The lane that `request` is in."""
        ...

    def free_blocks_after(self, num_steps: int) -> int:
        """Free KV blocks when `num_steps` steps of the current span have ended."""
        ...

    def has_room(self, request: Request) -> bool:
        """Whether `request` would be admitted at the next boundary."""
        ...

    def can_reserve(self, request: Request, num_tokens: int | None = None) -> bool:
        """Whether so many tokens of `request` (default: what it has) fit above the watermark."""
        ...

    def reserve(self, request: Request, num_tokens: int | None = None) -> int:
        """Take the blocks for the KV of `request`, which is to come; they must be free.

        Returns the tokens whose KV is here already.
        """
        ...

    def submit(self, request: Request) -> None:
        """Queue `request` for prefill."""
        ...

    def join(self, request: Request) -> None:
        """Take over `request`, whose KV has arrived in blocks reserved here."""
        ...

    def release(self, request: Request) -> None:
        """Free the blocks of `request`, whose KV has left for a decode instance."""
        ...

    def follow_prefills(self, on_prefill: OnPrefill, num_layers: int) -> None:
        """Tell `on_prefill` of every prefill that begins and ends with its step."""
        ...

    def decodes(self, request: Request) -> bool:
        """Whether `request` is decoding here."""
        ...

    def prefill_s(self, prompt_len: int, cached_tokens: int = 0) -> float:
        """Time to prefill one prompt of so many tokens alone, some of them cached (s)."""
        ...

    def decode_s(self, num_seqs: int, context_tokens: int) -> float:
        """Time of one decode step of so many sequences with so many tokens together (s)."""
        ...

    def wake(self) -> None:
        """Schedule again at the next step boundary; at once if it is idle."""
        ...

    def watch(self, stop_at: StopAt | None) -> None:
        """From now on end spans where `stop_at` says, the present one too; None: nowhere."""
        ...

    def release_output(self) -> list[Request]:
        """Release the tokens held back so far; return whose last token is among them."""
        ...

    def close(self) -> None:
        """Book what has ended, because the run is over."""
        ...


class InstanceStats(NamedTuple):
    """Totals of one instance: columns of the instances frame.

    Attributes
    ----------
    num_blocks : int
        KV blocks.
    busy_s : float
        Time in steps (s), of all its lanes.
    num_steps, num_requests, num_preemptions : int
        How many.
    peak_kv_usage : float
        Largest share of blocks in use, 0 to 1.
    num_swaps : int
        Preemptions whose KV went to host memory.
    asked_blocks, cached_blocks : int
        Full blocks that requests looked for when they came in, and those that they found.
    """

    num_blocks: int
    busy_s: float
    num_steps: int
    num_requests: int
    num_preemptions: int
    peak_kv_usage: float
    num_swaps: int
    asked_blocks: int
    cached_blocks: int


class InstanceOwner(Protocol):
    """Who hears from an instance: the router in front of it, the strategy around it."""

    def prefilled(self, instance: InstanceLike, request: Request) -> None:
        """`request` produced its first token here (again, after a preemption)."""
        ...

    def preempted(self, instance: InstanceLike, request: Request) -> None:
        """`request` was decoding here and lost its KV; it waits to recompute it or get it back."""
        ...

    def resumed(self, instance: InstanceLike, request: Request) -> None:
        """`request` decodes here again, its KV copied back from host memory."""
        ...

    def joined(self, instance: InstanceLike, request: Request) -> None:
        """`request`, whose KV came from elsewhere, is in the batch of the step about to start."""
        ...

    def finished(self, instance: InstanceLike, request: Request) -> None:
        """`request` produced its last token here."""
        ...

    def boundary(self, instance: InstanceLike) -> None:
        """A step of the instance ended, and its state is up to date."""
        ...


class Instance:
    """One copy of the model: schedule, let the step's time pass, book what it did, again.

    State read from outside (`load_tokens`, `free_blocks`) is that of the last step boundary, also
    in the middle of a span.

    Parameters
    ----------
    env : Clock
        The run.
    instance_id : int
        Its number in the cluster; the order of instances in ties.
    scheduler : Scheduler
        What it runs next.
    step_time : StepTime
        How long that takes.
    recorder : Recorder
        Where its spans go.
    resolution : str
        ``"span"``, ``"step"`` or ``"kernel"``.
    ranks : RankGroup or None
        Dispatchers and GPUs, at resolution ``kernel`` or where the recorder wants kernels.
    window : int or None
        The model's sliding window (tokens).
    lane : int
        Which of the batches in flight of a pipeline this is.
    order : int, optional
        Its place in ties, unique in the cluster; default: `instance_id`.
    pipeline : PipelineStages, optional
        The stages that its batches pass, shared with the other lanes.
    copy_s : callable, optional
        Time (s, on the grid) to copy so many KV blocks to or from host memory, where the scheduler
        has some. A step that needs copies starts with them: they are in the queue of its kernels,
        as in vLLM's V0.

    Attributes
    ----------
    owner : InstanceOwner
        Set by the deployment before the run starts.
    hold_output : bool
        While true, tokens are computed but not released to the user; see `release_output`.
    busy_s : float
        Time in steps so far (s).
    num_steps, num_requests : int
        Steps taken and requests given to it so far.
    """

    owner: InstanceOwner
    num_lanes = 1

    def __init__(
        self,
        env: Clock,
        instance_id: int,
        scheduler: Scheduler,
        step_time: StepTime,
        recorder: Recorder,
        *,
        resolution: str = "span",
        ranks: RankGroup | None = None,
        window: int | None = None,
        lane: int = 0,
        order: int | None = None,
        pipeline: PipelineStages | None = None,
        copy_s: Callable[[int], float] | None = None,
    ) -> None:
        self._env = env
        self.instance_id = instance_id
        self._lane = lane
        self._order = instance_id if order is None else order
        self._pipeline = pipeline
        self._in_flight = None if pipeline is None else pipeline.in_flight
        self._batch_run: BatchRun | None = None  # the present span in a pipeline, or the last
        self._time_of_copies = copy_s
        self._copies_s = 0.0  # with which the current step starts
        self.scheduler = scheduler
        self.step_time = step_time
        self._spans = recorder.spans
        self._segments = recorder.segments
        self._kernels = recorder.kernels
        self._resolution = resolution
        self._ranks = ranks
        self._window = window
        self._wake = Wake(env)
        self._idle = False
        self._plan: StepPlan | None = None
        self._start_s = 0.0  # of the current span
        self._hidden_s = 0.0  # host work of its first step that is done when it starts
        self._ends: list[float] = []  # end times of the steps of the current span
        self._steps = 0  # how many of them will be done
        self._num_waiting = 0  # when the current span began
        self.hold_output = False
        self._wires: SharedWires | None = None
        self._on_prefill: OnPrefill | None = None
        self._num_layers = 1
        self._held_first: list[Request] = []
        self._held_last: list[Request] = []
        self._stop_at: StopAt | None = None
        self.busy_s = 0.0
        self.num_steps = 0
        self.num_requests = 0
        self.process = env.process(self._run())

    # --- what others may do -------------------------------------------------------------------

    def submit(self, request: Request) -> None:
        """Queue `request` for prefill; it can join the next step."""
        self._take(request)
        request.prefill_instance = self.instance_id
        request.decode_instance = self.instance_id
        may_change_plan = self.scheduler.add(request)
        if self._idle or (self._in_flight is not None and not may_change_plan):
            self.wake()  # in a pipeline every step has a row, in which the newcomer shows
        elif may_change_plan and self._steps > 1 and self._plan is not None:
            # Beside a prompt that takes all the budget it can change nothing before the last chunk.
            begun = bisect_left(self._ends, self._env.now) + 1
            self._stop_after(max(begun, self._plan.closed_steps))

    def share_wires(self, wires: SharedWires) -> None:
        """From now on its collectives share `wires` with KV transfers."""
        self._wires = wires

    def cut_later(self) -> None:
        """End the run of steps before the first one that starts after now."""
        if self._steps > 1:
            self._stop_after(bisect_right(self._ends, self._env.now) + 1)

    def follow_prefills(self, on_prefill: OnPrefill, num_layers: int) -> None:
        """Tell `on_prefill` of every prefill that begins and ends with its step.

        `num_layers` is that of the model.
        """
        self._on_prefill, self._num_layers = on_prefill, num_layers

    def join(self, request: Request) -> None:
        """Take over `request`, whose KV has arrived in blocks reserved here."""
        self._take(request)
        request.decode_instance = self.instance_id
        self.scheduler.join(request)
        self.wake()

    def wake(self) -> None:
        """Schedule again at the next step boundary; at once if the instance is idle."""
        now = self._env.now
        if self._idle:
            self._idle = False
            self._wake.move(now, SCHEDULING + self._order)
        elif self._steps > 1:
            self._stop_after(bisect_left(self._ends, now) + 1)

    def watch(self, stop_at: StopAt | None) -> None:
        """From now on end spans where `stop_at` says, the present one too; None: nowhere."""
        self._stop_at = stop_at
        if stop_at is not None and self._steps > 1:
            first = self.steps_done
            if first < self._steps:
                self._stop_after(stop_at(self, self._ends, first))

    def _stop_after(self, steps: int) -> None:
        """End the span after `steps` steps, if it does not end before."""
        if steps < self._steps:
            self._steps = steps
            if self._in_flight is not None and self._batch_run is not None:
                self._in_flight.stop(self._batch_run, steps)
            else:
                self._wake.move(self._ends[steps - 1], STEP_END + self._order)

    def release_output(self) -> list[Request]:
        """Release the tokens held back so far to their users, now.

        Returns
        -------
        list of Request
            Those whose last token is among them.
        """
        now = self._env.now
        for request in self._held_first:
            request.first_output_s = now
        for request in self._held_last:
            request.last_output_s = now
        done = self._held_last
        self._held_first, self._held_last = [], []
        return done

    def close(self) -> None:
        """Book what has ended of the current span and of the decodes, because the run is over."""
        if self._plan is not None and self._steps > 1 and (steps := self.steps_done):
            plan, end = self._plan, self._ends[steps - 1]
            self._plan, self._steps = None, 0
            self._book(plan, steps, end)
        self.scheduler.close()
        self._record_segments()

    @property
    def steps_done(self) -> int:
        """Steps of the current span that have ended."""
        return min(bisect_right(self._ends, self._env.now), self._steps)

    @property
    def load_tokens(self) -> int:
        """Tokens of the waiting and running requests at the last step boundary."""
        # Routers read it of every instance for every request: no detours.
        scheduler, plan = self.scheduler, self._plan
        batch = scheduler.batch
        tokens = scheduler.queued_tokens + batch.context_tokens - batch.size
        if plan is not None and plan.num_decodes:
            steps = bisect_right(self._ends, self._env.now)
            tokens += (steps if steps < self._steps else self._steps) * plan.num_decodes
        return tokens

    @property
    def has_unfinished(self) -> bool:
        """Whether any request waits or runs."""
        return self.scheduler.has_unfinished

    @property
    def num_unfinished(self) -> int:
        """Requests that wait or run."""
        return self.scheduler.num_waiting + self.scheduler.num_running

    @property
    def stats(self) -> InstanceStats:
        """What it has done so far."""
        pool = self.scheduler.pool
        return InstanceStats(
            pool.num_blocks,
            self.busy_s,
            self.num_steps,
            self.num_requests,
            self.scheduler.num_preemptions,
            pool.peak_used / pool.num_blocks,
            self.scheduler.num_swaps,
            pool.num_asked,
            pool.num_found,
        )

    def decodes(self, request: Request) -> bool:
        """Whether `request` is decoding here."""
        return request in self.scheduler.batch

    def prefill_s(self, prompt_len: int, cached_tokens: int = 0) -> float:
        """Time to prefill one prompt of so many tokens alone, some of them cached (s)."""
        if not cached_tokens:
            return self.step_time.prefill_s(prompt_len)
        chunk = (prompt_len - cached_tokens, cached_tokens)
        return self.step_time.step_s(StepShape(0, 0, (chunk,), 1, 0))

    def decode_s(self, num_seqs: int, context_tokens: int) -> float:
        """Time of one decode step of so many sequences with so many tokens together (s)."""
        window = context_tokens
        if self._window is not None:
            window = min(context_tokens, num_seqs * self._window)
        return self.step_time.step_s(StepShape(num_seqs, context_tokens, (), num_seqs, window))

    def lane_of(self, request: Request) -> int:
        """The lane that `request` is in: there is one."""
        return 0

    def decode_step_of(self, lane: int) -> int:
        """Decode steps done at the last step boundary."""
        step = self.scheduler.batch.step
        if self._plan is not None and self._plan.num_decodes:
            step += self.steps_done
        return step

    @property
    def free_blocks(self) -> int:
        """Free KV blocks at the last step boundary."""
        return self.scheduler.pool.free_blocks - self.taken_blocks

    @property
    def waiting_blocks(self) -> int:
        """KV blocks that the requests waiting here will take."""
        return self.scheduler.waiting_blocks

    def cached_tokens(self, request: Request) -> int:
        """Tokens of `request` that it would find in the KV cache, at the last step boundary."""
        pool = self.scheduler.pool
        if not pool.shares:
            return 0
        pool.settle(self.taken_blocks)
        return pool.find(request, request.prompt_len)[0] * pool.block_size

    def blocks_for(self, num_tokens: int) -> int:
        """KV blocks that hold `num_tokens` tokens of one sequence."""
        return self.scheduler.pool.blocks_for(num_tokens)

    def free_blocks_after(self, num_steps: int) -> int:
        """Free KV blocks when `num_steps` steps of the current span have ended."""
        scheduler = self.scheduler
        return scheduler.pool.free_blocks - scheduler.batch.blocks_needed(num_steps)

    def has_room(self, request: Request) -> bool:
        """Whether `request` would be admitted at the next boundary, from the state at the last."""
        return self.scheduler.has_room(request, self.taken_blocks)

    def release(self, request: Request) -> None:
        """Free the blocks of `request`, whose KV has left for a decode instance."""
        self.scheduler.release(request)
        if self.scheduler.waiting.head is not None:
            self.wake()
        self.owner.boundary(self)

    def can_reserve(self, request: Request, num_tokens: int | None = None) -> bool:
        """Whether so many tokens of `request` (default: what it has) fit above the watermark."""
        return self.scheduler.can_reserve(request, self.taken_blocks, num_tokens)

    def reserve(self, request: Request, num_tokens: int | None = None) -> int:
        """Take the blocks for the KV of `request`, which is to come; they must be free.

        Returns
        -------
        int
            Tokens whose KV is here already.
        """
        pool, batch = self.scheduler.pool, self.scheduler.batch
        num_cached = self.scheduler.reserve(request, self.taken_blocks, num_tokens)
        if self._steps > 1 and (
            self._in_flight is not None or batch.blocks_needed(self._steps) > pool.free_blocks
        ):
            # The rest of the span counted on these blocks. (In a pipeline every step has a row, in
            # which they show.)
            self.wake()
        return num_cached

    @property
    def taken_blocks(self) -> int:
        """Blocks taken by the steps of the current span that have begun, not yet booked.

        A step takes its blocks when it begins. At the very time of a boundary the next one has not:
        whatever asks then comes before scheduling.
        """
        if self._plan is None or not self._plan.num_decodes:
            return 0
        begun = min(bisect_left(self._ends, self._env.now) + 1, self._steps)
        return self.scheduler.batch.blocks_needed(begun)

    # --- the loop -----------------------------------------------------------------------------

    def _take(self, request: Request) -> None:
        request.routed_s = self._env.now if request.num_output_tokens == 0 else request.routed_s
        self.num_requests += 1

    def _run(self) -> Generator[simpy.Event, Any, None]:
        env, scheduler = self._env, self.scheduler
        while True:
            plan = scheduler.schedule(env.now)
            if scheduler.preempted:
                for request in scheduler.preempted:
                    self.owner.preempted(self, request)
                scheduler.preempted.clear()
                self._record_segments()
            if scheduler.resumed:
                for request in scheduler.resumed:
                    self.owner.resumed(self, request)
                scheduler.resumed.clear()
                self.owner.boundary(self)  # with nobody swapped out there may be room again
            elif scheduler.pool.shares and plan is not None and plan.chunks:
                self.owner.boundary(self)  # who came in may hold the prefix of who waits outside
            if scheduler.joined:
                for request in scheduler.joined:
                    self.owner.joined(self, request)
                scheduler.joined.clear()
            if plan is None:
                self._idle = True
                self._hidden_s = 0.0
                if self._wires is not None:
                    self._wires.idle()
                if self._in_flight is not None and self._batch_run is not None:
                    self._in_flight.leave(self._batch_run, idle=True)
                    self._batch_run = None
                yield self._wake.sleep()
                continue
            self._start_s = env.now
            self._plan = plan
            self._copies_s = 0.0
            if scheduler.copied_blocks:
                assert self._time_of_copies is not None
                self._copies_s = self._time_of_copies(scheduler.copied_blocks)
                scheduler.copied_blocks = 0
            if self._wires is not None:
                self.step_time = self._wires.begin(plan, scheduler.shape(plan))
            if self._on_prefill is not None and plan.chunks:
                self._announce(plan, self._on_prefill)
            if self._pipeline is not None and self._in_flight is not None:
                yield self._run_ahead(plan, self._pipeline, self._in_flight)
            elif self._pipeline is not None:
                yield from self._pass_pipeline(plan, self._pipeline)
            elif self._ranks is not None and self._by_kernel(plan):
                yield from self._run_kernels(plan)
            else:
                self._ends = self._step_ends(plan)
                self._steps = len(self._ends)
                if self._stop_at is not None and self._steps > 1:
                    self._steps = self._stop_at(self, self._ends, 0)
                if self._wires is not None and self._wires.is_stale:
                    self._steps = 1
                yield self._wake.at(self._ends[self._steps - 1], STEP_END + self._order)
            steps = self._steps
            gpu_s = self._gpu_s(plan, steps - 1) if self.step_time.overlaps_host else 0.0
            self._plan, self._steps = None, 0
            self._finish(plan, steps)
            self._hidden_s = gpu_s
            self.owner.boundary(self)
            if env.peek() <= env.now:
                # Others have business at this very time: let it settle before planning.
                yield self._wake.at(env.now, SCHEDULING + self._order)

    def _announce(self, plan: StepPlan, on_prefill: OnPrefill) -> None:
        """Say of every request whose prefill ends with the step of `plan` when its KV appears.

        The first layer ends when the GPU has done its share of the layers; the work of the host is
        taken to come before.
        """
        shape = self.scheduler.shape(plan)
        gpu_s = self.step_time.gpu_s(shape)
        num_layers = self._num_layers
        end_s = self._env.now + self.step_time.step_s(shape, self._hidden_s)
        layer_end_s = end_s - on_grid(gpu_s * (num_layers - 1) / num_layers)
        for request, num_tokens in plan.chunks:
            total = request.num_computed_tokens + num_tokens
            if plan.max_steps == 1 and total == target(request):
                on_prefill(self, request, total, max(self._env.now, layer_end_s))

    def _step_ends(self, plan: StepPlan) -> list[float]:
        """End times of the steps of `plan` (s)."""
        now, hidden_s = self._env.now, self._hidden_s
        limit = min(plan.max_steps, MAX_SPAN_STEPS)
        if limit == 1 or self._resolution == "step":
            step_s = self.step_time.step_s(self.scheduler.shape(plan), hidden_s)
            return [now + self._copies_s + step_s]
        window = self.scheduler.window_tokens(limit)
        ends: list[float]
        if plan.chunks:
            ends = self._chunk_ends(plan, limit, window)
        else:
            ends = self.step_time.decode_ends_s(
                now, plan.num_decodes, plan.context_tokens, limit, hidden_s, window
            )
        if self._kernels is not None and now < self._kernels.start_s:
            # The step that is to be shown in kernels has a span of its own.
            del ends[max(1, bisect_right(ends, self._kernels.start_s)) :]
        return ends

    def _chunk_ends(self, plan: StepPlan, limit: int, window: IntArray | None) -> list[float]:
        """End times of the first `limit` steps of `plan`, each with a chunk of one prompt (s)."""
        step_time, end, hidden_s = self.step_time, self._env.now, self._hidden_s
        ends: list[float] = []
        for step in range(limit):
            shape = plan.shape(None if window is None else int(window[step]), step)
            end += step_time.step_s(shape, hidden_s)
            ends.append(end)
            if step_time.overlaps_host:
                hidden_s = step_time.gpu_s(shape)
        return ends

    def _by_kernel(self, plan: StepPlan) -> bool:
        """Whether to run the first step of `plan` kernel by kernel.

        Where kernels are recorded it is if it reaches into the time of the record.
        """
        log, now = self._kernels, self._env.now
        if log is None:
            return self._resolution == "kernel"
        if now >= log.end_s:
            return False
        shape = self.scheduler.shape(plan)
        step_s = self.step_time.step_s(shape, self._hidden_s)
        return now + self._copies_s + step_s > log.start_s

    def _gpu_s(self, plan: StepPlan, step: int) -> float:
        """GPU time of step `step` of `plan` (s); before the plan is booked."""
        return self.step_time.gpu_s(self.scheduler.shape(plan, step))

    def _run_kernels(self, plan: StepPlan) -> Generator[simpy.Event, Any, None]:
        """Let the dispatchers and GPUs do one step, kernel by kernel."""
        if self._ranks is None:
            raise InvariantError("resolution kernel without dispatchers")
        schedule = self.step_time.kernels(self.scheduler.shape(plan))
        host_after_s = schedule.host_after_s
        self._steps = 1
        self._ends = []
        if self.step_time.overlaps_host:
            # Another thread does the host work of this step; it began when the GPU began the last.
            left_s = schedule.host_before_s + host_after_s - self._hidden_s
            if left_s > 0.0:
                yield self._env.timeout(left_s)
                self._write_host_work(self._env.now - left_s, self._env.now)
            schedule = replace(schedule, host_before_s=0.0)
            host_after_s = 0.0
        if self._copies_s:
            yield self._env.timeout(self._copies_s)
        yield self._ranks.run(schedule)
        end = self._env.now + host_after_s
        if host_after_s:
            self._write_host_work(self._env.now, end)
        self._ends = [end]
        yield self._wake.at(end, STEP_END + self._order)

    def _run_ahead(
        self, plan: StepPlan, pipeline: PipelineStages, in_flight: BatchesInFlight
    ) -> simpy.Event:
        """Let a run of steps pass the stages; return what to wait for."""
        limit = min(plan.max_steps, MAX_PIPELINE_STEPS)
        if self._stop_at is not None:
            limit = self._stop_at(self, [], 0)
        self._steps = limit
        self._num_waiting = self.scheduler.num_waiting
        window = self.scheduler.window_tokens(limit)
        before_s, after_s = pipeline.host_s(self.scheduler.shape(plan))
        wake = self._wake
        wake.sleep()
        run = BatchRun(
            wake,
            STEP_END + self._order,
            limit,
            (before_s + self._copies_s, after_s),
            *pipeline.stage_times(plan, limit, window),
        )
        if self._batch_run is not None:
            in_flight.leave(self._batch_run, idle=False)
        self._batch_run, self._ends = run, run.ends
        in_flight.enter(run, self._env.now)
        return wake.event

    def _pass_pipeline(
        self, plan: StepPlan, pipeline: PipelineStages
    ) -> Generator[simpy.Event, Any, None]:
        """Let the batch pass the stages once; the host works on it before and after."""
        shape = self.scheduler.shape(plan)
        before_s, after_s = pipeline.host_s(shape)
        self._steps = 1
        self._ends = []
        before_s += self._copies_s
        if before_s:
            yield self._wake.at(self._env.now + before_s, STEP_END + self._order)
        end = yield from pipeline.pass_through(shape)
        end += after_s
        self._ends = [end]
        yield self._wake.at(end, STEP_END + self._order)

    def _write_host_work(self, start: float, end: float) -> None:
        if self._kernels is not None:
            self._kernels.add((self.instance_id, 0, "cpu", "host work", start, end))

    def _book(self, plan: StepPlan, steps: int, end: float) -> StepOutcome:
        """Book `steps` steps of the span of `plan`, the last of which ended at `end` (s)."""
        if plan.last_tokens and steps == plan.max_steps:
            num_waiting = self.scheduler.num_waiting
            # The last chunk is another one: a span of its own. Nobody waited for it to begin.
            boundary_s = self._ends[steps - 2]
            hidden_s = self._gpu_s(plan, steps - 2) if self.step_time.overlaps_host else 0.0
            last = plan.last_step()
            self._book_equal_steps(plan, steps - 1, boundary_s, 0)
            self._start_s, self._hidden_s = boundary_s, hidden_s
            return self._book_equal_steps(last, 1, end, num_waiting)
        return self._book_equal_steps(plan, steps, end, self.scheduler.num_waiting)

    def _book_equal_steps(
        self, plan: StepPlan, steps: int, end: float, num_waiting: int
    ) -> StepOutcome:
        scheduler = self.scheduler
        start_s, context, rows = self._start_s, plan.context_tokens, steps
        tokens = cached = 0
        if plan.chunks:
            tokens, cached = plan.prefill_tokens, plan.cached_tokens
        if self._in_flight is not None and steps > 1:
            self._write_all_but_the_last(plan, steps)
            start_s, rows = self._ends[steps - 2], 1
            context += (steps - 1) * plan.num_decodes
            cached += (steps - 1) * tokens
        outcome = scheduler.complete(plan, steps, end)
        self.busy_s += end - self._start_s
        self.num_steps += steps
        self._spans.add(
            (
                self.instance_id,
                self._lane,
                start_s,
                end,
                plan.kind,
                rows,
                plan.num_decodes,
                context,
                len(plan.chunks),
                tokens,
                cached,
                scheduler.pool.usage,
                num_waiting,
                scheduler.num_running,
                self._hidden_s,
                1.0 if self._wires is None else self._wires.share_in_use,
            )
        )
        if scheduler.segments:
            self._record_segments()
        return outcome

    def _write_all_but_the_last(self, plan: StepPlan, steps: int) -> None:
        """Write a row for each step but the last of a run of `steps` in a pipeline.

        When they end depends on the other batches: nobody could unroll them. Nothing but the steps
        has happened to the instance in between.
        """
        scheduler, pool = self.scheduler, self.scheduler.pool
        start_s, context = self._start_s, plan.context_tokens
        tokens, cached = plan.prefill_tokens, plan.cached_tokens
        taken = scheduler.batch.blocks_by_step(steps - 1)
        for end_s, blocks in zip(self._ends, taken, strict=False):
            self._spans.add(
                (
                    self.instance_id,
                    self._lane,
                    start_s,
                    end_s,
                    plan.kind,
                    1,
                    plan.num_decodes,
                    context,
                    len(plan.chunks),
                    tokens,
                    cached,
                    1.0 - (pool.free_blocks - blocks) / pool.num_blocks,
                    self._num_waiting,
                    scheduler.num_running,
                    0.0,
                    1.0,
                )
            )
            start_s = end_s
            context += plan.num_decodes
            cached += tokens

    def _record_segments(self) -> None:
        segments = self.scheduler.segments
        for number, prefill_end_s, first_step, last_step in segments:
            self._segments.add(
                (number, self.instance_id, self._lane, prefill_end_s, first_step, last_step)
            )
        segments.clear()

    def _finish(self, plan: StepPlan, steps: int) -> None:
        """Book the `steps` steps of the span of `plan`, which ends now, and pass the news on."""
        now = self._env.now
        outcome = self._book(plan, steps, now)
        for request in outcome.prefilled:
            if request.first_token_s == now:
                if self.hold_output:
                    self._held_first.append(request)
                else:
                    request.first_output_s = now
            self.owner.prefilled(self, request)
        for request in outcome.finished:
            if self.hold_output:
                self._held_last.append(request)
            else:
                request.last_output_s = now
            self.owner.finished(self, request)
