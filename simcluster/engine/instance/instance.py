"""One copy of the model on its GPUs: a SimPy process around a scheduler that knows no clock."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator
from functools import partial
from math import inf
from typing import Any

import simpy

from simcluster.catalog.layers import Reach
from simcluster.engine.clock import SCHEDULING, Clock, Wake
from simcluster.engine.instance.dispatcher import RankGroup
from simcluster.engine.instance.held_output import HeldOutput
from simcluster.engine.instance.kernel_runner import KernelRunner
from simcluster.engine.instance.kv_hooks import KvHooks
from simcluster.engine.instance.lock_step import LockStep, LockStepRunner
from simcluster.engine.instance.owner import InstanceOwner
from simcluster.engine.instance.pipeline import PipelineStages
from simcluster.engine.instance.pipeline_runner import AheadRunner, PipelineRunner
from simcluster.engine.instance.ports import InstanceStats, OnPrefill, StopAt
from simcluster.engine.instance.runner import MAX_SPAN_STEPS, Runner, SpanRunner
from simcluster.engine.instance.span_log import SpanLog
from simcluster.engine.instance.state import InstanceState
from simcluster.engine.links.wires import SharedWires
from simcluster.engine.recorder import Recorder
from simcluster.request import Request, RequestStatus
from simcluster.roofline.base import RankTime, StepShape, StepTime
from simcluster.sched import Scheduler, StepPlan


class Instance(InstanceState):
    """One copy of the model: schedule, let the steps pass, book what they did, again.

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
    reach : Reach or None
        Window, chunk or top-k of the model's layers.
    lane : int
        Which of the batches in flight of a pipeline this is.
    order : int, optional
        Its place in ties, unique in the cluster; default: `instance_id`.
    pipeline : PipelineStages, optional
        The stages that its batches pass, shared with the other lanes.
    lock_step : (LockStep, RankTime), optional
        The steps that it takes together with other data-parallel ranks, and their times.
    copy_s : callable, optional
        Time (s, on the grid) to copy a number of KV blocks to or from host memory, where the
        scheduler has some. A step that needs copies starts with them: they are in the queue of its
        kernels, as in vLLM's V0.

    Attributes
    ----------
    owner : InstanceOwner
        Set by the deployment before the run starts.
    num_requests : int
        Requests given to it so far.
    stop_at : StopAt or None
        Where spans must end; see `watch`.
    wires : SharedWires or None
        What its collectives share with KV transfers.
    shows_first_token : bool
        Whether the first token of a request that decodes elsewhere reaches its user from here.
    hooks : KvHooks
        What moving KV to and from it adds to its steps.
    other_tokens : int
        Tokens of the other data-parallel ranks in each step under way.
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
        reach: Reach | None = None,
        lane: int = 0,
        order: int | None = None,
        pipeline: PipelineStages | None = None,
        lock_step: tuple[LockStep, RankTime] | None = None,
        copy_s: Callable[[int], float] | None = None,
    ) -> None:
        super().__init__(env, scheduler, step_time, reach)
        self.instance_id = instance_id
        self.order = instance_id if order is None else order
        self.num_requests = 0
        self.stop_at: StopAt | None = None
        self.wires: SharedWires | None = None
        self.shows_first_token = True
        self.hooks = KvHooks()
        self.other_tokens = 0
        self._copy_s = copy_s
        self._wake = Wake(env)
        self._is_idle = False
        self._arrived: deque[float] = deque()  # when the requests came that no plan knows of yet
        self._known_s = inf  # the next plan knows of what came up to then (s)
        self._held = HeldOutput()
        most_steps = 1 if resolution == "step" else MAX_SPAN_STEPS
        self._row_per_step = pipeline is not None and pipeline.in_flight is not None
        if lock_step is not None:
            self._row_per_step = lock_step[0].row_per_step
        self._log = SpanLog(recorder, instance_id, lane, scheduler, row_per_step=self._row_per_step)
        self._runner: Runner
        if pipeline is not None and pipeline.in_flight is not None:
            self._runner = AheadRunner(self, self._wake, pipeline, pipeline.in_flight)
        elif pipeline is not None:
            self._runner = PipelineRunner(self, self._wake, pipeline)
        elif lock_step is not None:
            group, times = lock_step
            self._runner = LockStepRunner(self, self._wake, group, times, ranks, recorder.kernels)
        elif ranks is not None:
            self._runner = KernelRunner(self, self._wake, most_steps, recorder.kernels, ranks)
        else:
            self._runner = SpanRunner(self, self._wake, most_steps, recorder.kernels)
        self.process = env.process(self._run())

    # --- what others may do -------------------------------------------------------------------

    def submit(self, request: Request) -> None:
        """Queue `request` for prefill; it can join the next step."""
        self._take(request)
        request.prefill_instance = self.instance_id
        request.decode_instance = self.instance_id
        may_change_plan = self.scheduler.add(request)
        span = self.span
        if self.scheduler.plans_ahead:
            self._arrived.append(self.env.now)
        if self._is_idle or (self._row_per_step and not may_change_plan):
            self.wake()  # where every step has a row, the newcomer shows in the next one
        elif may_change_plan and span.num_steps > 1 and span.plan is not None:
            # Beside a prompt that takes all the budget it can change nothing before the last chunk.
            begun = span.steps_begun(self.env.now) + self.scheduler.plans_ahead
            self._stop_after(max(begun, span.plan.closed_steps))

    def join(self, request: Request) -> None:
        """Take over `request`, whose KV has arrived in blocks reserved here."""
        self._take(request)
        request.decode_instance = self.instance_id
        self.scheduler.join(request)
        if self.scheduler.plans_ahead:
            self._arrived.append(self.env.now)
        if self._is_idle or not self.scheduler.plans_ahead:
            self.wake()
        elif self.span.num_steps > 1:
            self._stop_after(self.span.steps_begun(self.env.now) + 1)

    def _take(self, request: Request) -> None:
        request.routed_s = self.env.now if request.num_output_tokens == 0 else request.routed_s
        self.num_requests += 1

    def reserve(self, request: Request, num_tokens: int | None = None) -> int:
        """Take the blocks for the KV of `request`, which is to come; they must be free.

        Returns
        -------
        int
            Tokens whose KV is here already.
        """
        scheduler, steps = self.scheduler, self.span.num_steps
        num_cached = scheduler.reserve(request, self.taken_blocks, num_tokens)
        if steps > 1 and (
            self._row_per_step or scheduler.batch.blocks_needed(steps) > scheduler.pool.free_blocks
        ):
            # The rest of the span counted on these blocks; or its rows would not show them.
            self.wake()
        return num_cached

    def release(self, request: Request) -> None:
        """Free the blocks of `request`, whose KV has left for a decode instance."""
        self.scheduler.release(request)
        if self.scheduler.waiting.head is not None:
            self.wake()
        self.owner.boundary(self)

    def wake(self) -> None:
        """Schedule again at the next step boundary; at once if the instance is idle."""
        if self._is_idle:
            self._is_idle = False
            self._runner.rouse()
        elif self.span.num_steps > 1:
            self._stop_after(self.span.steps_begun(self.env.now))

    def watch(self, stop_at: StopAt | None) -> None:
        """From now on end spans where `stop_at` says, the present one too; None: nowhere."""
        self.stop_at = stop_at
        span = self.span
        if stop_at is not None and span.num_steps > 1:
            ended = span.steps_ended(self.env.now)
            if ended < span.num_steps:
                self._stop_after(stop_at(self, span.ends, ended))

    def cut_later(self) -> None:
        """End the run of steps before the first one that starts after now."""
        if self.span.num_steps > 1:
            self._stop_after(self.span.steps_begun_by(self.env.now))

    def _stop_after(self, num_steps: int) -> None:
        """End the span after `num_steps` steps, if it does not end before."""
        if num_steps < self.span.num_steps:
            self._runner.stop(self.span, num_steps)

    def follow_prefills(self, on_prefill: OnPrefill, num_layers: int) -> None:
        """Tell `on_prefill` of every prefill that begins and ends with its step.

        `num_layers` is that of the model.
        """
        self.hooks.on_prefill = partial(on_prefill, self)
        self.hooks.num_layers = num_layers

    @property
    def hold_output(self) -> bool:
        """While true, tokens are computed but not released to the user."""
        return self._held.is_on

    @hold_output.setter
    def hold_output(self, value: bool) -> None:
        self._held.is_on = value

    def release_output(self) -> list[Request]:
        """Release the tokens held back so far, now; return whose last token is among them."""
        return self._held.release(self.env.now)

    @property
    def stats(self) -> InstanceStats:
        """What it has done so far."""
        scheduler, pool = self.scheduler, self.scheduler.pool
        return InstanceStats(
            pool.num_blocks,
            self._log.busy_s,
            self._log.num_steps,
            self.num_requests,
            scheduler.num_preemptions,
            pool.peak_used / pool.num_blocks,
            scheduler.swap.num_swaps,
            pool.num_asked,
            pool.num_found,
        )

    def close(self) -> None:
        """Book what has ended of the span and of the decodes, because the run is over."""
        span = self.span
        steps = span.steps_ended(self.env.now)
        if span.plan is not None and span.num_steps > 1 and steps:
            share = 1.0 if self.wires is None else self.wires.share_in_use
            self._log.book(span, steps, span.ends[steps - 1], self.step_time, share)
            span.clear()
        self.scheduler.close()
        self._log.write_segments()

    # --- the loop -----------------------------------------------------------------------------

    def _run(self) -> Generator[simpy.Event, Any, None]:
        env, span, runner, hooks = self.env, self.span, self._runner, self.hooks
        while True:
            plan = self._schedule()
            if plan is None:
                self._is_idle = True
                self._known_s = inf
                span.hidden_s = 0.0
                if self.wires is not None:
                    self.wires.idle()
                runner.idle()
                yield self._wake.sleep()
                continue
            if hooks.taken:
                for event in hooks.gets(plan, span):
                    yield event
            self._begin(plan)
            for event in runner.run(span, plan):
                yield event
            if hooks.put is not None and plan.chunks:
                for event in hooks.ended(plan, self, self.order):
                    yield event
            if hooks.computes is not None:
                hooks.computes(False)
            self._end(plan)
            if env.peek() <= env.now:
                # Others have business at this very time: let it settle before planning.
                yield self._wake.at(env.now, SCHEDULING + self.order)

    def _schedule(self) -> StepPlan | None:
        """Plan the next steps, and tell the owner what came of planning."""
        scheduler = self.scheduler
        if self._arrived:
            self._see(self._known_s)
        plan = scheduler.schedule(self.env.now)
        if plan is None and self._arrived:
            # Nothing is under way that the next step would have been planned beside.
            self._see(inf)
            plan = scheduler.schedule(self.env.now)
        moved = scheduler.preempted or scheduler.resumed or scheduler.joined
        if moved or (scheduler.pool.shares and plan is not None and plan.chunks):
            self._tell(scheduler, plan)  # an instance that is yet to start has no owner to tell
        return plan

    def _tell(self, scheduler: Scheduler, plan: StepPlan | None) -> None:
        """Tell the owner what came of planning: who left the batch, came back, or came in."""
        owner = self.owner
        if scheduler.preempted:
            for request in scheduler.preempted:
                owner.preempted(self, request)
            scheduler.preempted.clear()
            self._log.write_segments()
        if scheduler.resumed:
            for request in scheduler.resumed:
                owner.resumed(self, request)
            scheduler.resumed.clear()
            owner.boundary(self)  # with nobody swapped out there may be room again
        elif scheduler.pool.shares and plan is not None and plan.chunks:
            owner.boundary(self)  # who came in may hold the prefix of who waits outside
        if scheduler.joined:
            self.hooks.taken_in(scheduler.joined)
            for request in scheduler.joined:
                owner.joined(self, request)
            scheduler.joined.clear()

    def shape_of(self, plan: StepPlan, step: int) -> StepShape:
        """Shape of step number `step`, from 0, of `plan`, beside the other data-parallel ranks."""
        shape = self.scheduler.shape(plan, step)
        return shape._replace(other_tokens=self.other_tokens) if self.other_tokens else shape

    def _see(self, known_s: float) -> None:
        """Let the next plan know of the requests that came up to `known_s` (s)."""
        arrived = self._arrived
        while arrived and arrived[0] <= known_s:
            arrived.popleft()
            self.scheduler.see(1)

    def _begin(self, plan: StepPlan) -> None:
        """Begin the span of `plan`, now."""
        scheduler, swap, hooks = self.scheduler, self.scheduler.swap, self.hooks
        copies_s = 0.0
        if swap.copied_blocks:
            assert self._copy_s is not None, "only with host memory is there anything to copy"
            copies_s = self._copy_s(swap.copied_blocks)
            swap.copied_blocks = 0
        self.span.begin(plan, self.env.now, copies_s)
        if self.wires is not None:
            self.step_time = self.wires.begin(plan, scheduler.shape(plan))
        if hooks.computes is not None:
            hooks.computes(True)
        if hooks.on_prefill is not None and plan.chunks:
            hooks.began(plan, self, hooks.on_prefill)

    def _end(self, plan: StepPlan) -> None:
        """Book the span of `plan`, which ends now, and pass the news on."""
        span, owner, held, now = self.span, self.owner, self._held, self.env.now
        steps, gpu_s = span.num_steps, 0.0
        # An engine that plans ahead has planned the step that starts now when this one started.
        self._known_s = span.ends[steps - 2] if steps > 1 else span.start_s
        if self.step_time.overlaps_host:
            gpu_s = self.step_time.gpu_s(self.shape_of(plan, steps - 1))
        # While it is booked nobody may see steps both in the books and under way.
        share = 1.0 if self.wires is None else self.wires.share_in_use
        outcome = self._log.book(span, steps, now, self.step_time, share)
        span.clear()
        for request in outcome.prefilled:
            elsewhere = request.status is RequestStatus.TRANSFERRING and not self.shows_first_token
            if request.first_token_s == now and not elsewhere:
                held.first_token(request, now)
            owner.prefilled(self, request)
        for request in outcome.finished:
            held.last_token(request, now)
            owner.finished(self, request)
        span.hidden_s = gpu_s
        owner.boundary(self)
