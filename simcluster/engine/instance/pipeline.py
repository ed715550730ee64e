"""The stages of a pipelined instance, as its batches in flight meet them."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import replace
from math import inf, nan
from operator import attrgetter
from typing import Any

import simpy

from simcluster.catalog.specs import LinkSpec
from simcluster.config import ModelConfig
from simcluster.engine.clock import TRANSFER_END, At, Clock, Wake
from simcluster.engine.instance.dispatcher import RankGroup
from simcluster.roofline import Pipeline, StageTime, handover_s
from simcluster.roofline.base import StepShape
from simcluster.sched import StepPlan
from simcluster.units import IntArray


class _Batch:
    """A batch on its way: when it has reached each stage, and when it has left the last."""

    __slots__ = ("done", "reached", "shape")

    def __init__(self, env: Clock, shape: StepShape, num_stages: int) -> None:
        self.shape = shape
        self.reached = [simpy.Event(env) for _ in range(num_stages)]
        self.done = simpy.Event(env)


class BatchRun:
    """A run of steps of one batch in flight: what each takes, and as far as known when it ends.

    Parameters
    ----------
    wake : Wake
        What the owner of the batch waits for: the end of its last step.
    priority : int
        Of that event; batches that are ready at the same time enter in this order.
    limit : int
        How many steps.
    host_s : tuple of float
        Host work of a step before its first and after its last kernel (s).
    run_s, handed_s : sequence of sequence of float
        For each step the time in each stage and on the link behind it (s).

    Attributes
    ----------
    ends : list of float
        End times (s) of the steps that have entered the pipeline.
    ready_s : float
        When the next one is ready to (s).
    """

    __slots__ = (
        "ends",
        "handed_s",
        "host_after_s",
        "host_before_s",
        "limit",
        "priority",
        "ready_s",
        "run_s",
        "wake",
    )

    def __init__(
        self,
        wake: Wake,
        priority: int,
        limit: int,
        host_s: tuple[float, float],
        run_s: Sequence[Sequence[float]],
        handed_s: Sequence[Sequence[float]],
    ) -> None:
        self.wake = wake
        self.priority = priority
        self.limit = limit
        self.host_before_s, self.host_after_s = host_s
        self.run_s = run_s
        self.handed_s = handed_s
        self.ends: list[float] = []
        self.ready_s = nan

    @property
    def is_known(self) -> bool:
        """Whether the end of the last step is known."""
        return len(self.ends) == self.limit


class BatchesInFlight:
    """Runs of steps of all batches of a pipeline, computed ahead of the clock.

    Batches enter the first stage in the order in which they are ready and never overtake, so the
    ends of their steps are a recurrence of sums and maxima (as in `simcluster.roofline.Pipeline`).
    It is computed up to the first end of a run: what its batch does then is not known before. A
    batch that comes or stops earlier than that takes the steps back that entered later.

    Parameters
    ----------
    num_stages : int
        Stages of the pipeline.
    """

    def __init__(self, num_stages: int) -> None:
        self._free_s = [0.0] * num_stages
        self._runs: list[BatchRun] = []
        # Steps that entered and could still be taken back: when, whose, and the stages before.
        self._entered: list[tuple[float, BatchRun, list[float]]] = []

    def enter(self, run: BatchRun, now: float) -> None:
        """Let `run` begin `now` (s)."""
        self._take_back(now)
        # What is left entered before now, and nobody changes the past.
        self._entered.clear()
        run.ready_s = now + run.host_before_s
        self._runs.append(run)
        self._advance()

    def leave(self, run: BatchRun, *, idle: bool) -> None:
        """Forget `run`, whose last step has ended; the batch enters again now if not `idle`."""
        self._runs.remove(run)
        if idle:
            self._advance()

    def stop(self, run: BatchRun, limit: int) -> None:
        """Let `run` end after `limit` steps, before it would."""
        run.limit = limit
        if len(run.ends) >= limit:
            self._take_back(run.ends[limit - 1])
            run.wake.move(run.ends[-1], run.priority)

    def _take_back(self, time_s: float) -> None:
        """Take back the steps that entered at `time_s` (s) or later."""
        entered = self._entered
        while entered and entered[-1][0] >= time_s:
            ready_s, run, free_s = entered.pop()
            if run.is_known:
                run.wake.hold()
            run.ends.pop()
            run.ready_s = ready_s
            self._free_s = free_s

    def _advance(self) -> None:
        """Let steps enter until a run ends."""
        horizon_s = min((run.ends[-1] for run in self._runs if run.is_known), default=inf)
        open_runs = [run for run in self._runs if not run.is_known]
        open_runs.sort(key=lambda run: run.priority)
        while open_runs:
            run = min(open_runs, key=_ready_s)
            ready_s = run.ready_s
            if ready_s >= horizon_s:
                return
            free_s, step = self._free_s, len(run.ends)
            self._entered.append((ready_s, run, free_s))
            after_s, arrival_s = [], ready_s
            for free, run_s, handed_s in zip(
                free_s, run.run_s[step], run.handed_s[step], strict=True
            ):
                end_s = (arrival_s if arrival_s > free else free) + run_s
                after_s.append(end_s)
                arrival_s = end_s + handed_s
            self._free_s = after_s
            end_s += run.host_after_s
            run.ends.append(end_s)
            if step + 1 == run.limit:
                open_runs.remove(run)
                run.wake.move(end_s, run.priority)
                horizon_s = min(horizon_s, end_s)
            else:
                run.ready_s = end_s + run.host_before_s


_ready_s = attrgetter("ready_s")


class PipelineStages:
    """Stages that work on one batch at a time, in the order in which batches came.

    Parameters
    ----------
    env : Clock
        The run.
    stages : sequence of StageTime
        Step times of each stage.
    model : ModelConfig
        Whose activations go from stage to stage.
    links : sequence of LinkSpec
        From each stage to the next.
    ranks : sequence of RankGroup, optional
        Dispatchers and GPUs of each stage: kernel by kernel. Without them the passage of a batch is
        computed when it enters (`simcluster.roofline.Pipeline`).
    ahead : bool
        Compute the passages of all batches ahead, run by run.

    Attributes
    ----------
    first : RooflineStepTime
        Step times of the first stage.
    in_flight : BatchesInFlight or None
        Who computes them.
    """

    def __init__(
        self,
        env: Clock,
        stages: Sequence[StageTime],
        model: ModelConfig,
        links: Sequence[LinkSpec],
        ranks: Sequence[RankGroup] | None = None,
        *,
        ahead: bool = False,
    ) -> None:
        self._env = env
        self._stages = stages
        self.first = stages[0]
        self._model = model
        self._links = links
        self.closed_form = Pipeline(stages, model, links)
        self._ranks = ranks
        self.in_flight = BatchesInFlight(len(stages)) if ahead and ranks is None else None
        self._prefill_s: dict[int, float] = {}
        self._queues = [simpy.Store(env) for _ in stages] if ranks else []
        self.processes = [env.process(self._run(k)) for k in range(len(self._queues))]

    def host_s(self, shape: StepShape) -> tuple[float, float]:
        """Host work of a step before its first and after its last kernel (s)."""
        return self._stages[0].host_s(shape)[0], self._stages[-1].host_s(shape)[1]

    def prefill_s(self, prompt_len: int) -> float:
        """Time to prefill one prompt of `prompt_len` tokens alone in the empty pipeline (s)."""
        known = self._prefill_s.get(prompt_len)
        if known is None:
            shape = StepShape(0, 0, ((prompt_len, 0),), 1, 0)
            known = sum(self.host_s(shape), 0.0) + self.closed_form.latency_s(shape)
            self._prefill_s[prompt_len] = known
        return known

    def stage_times(
        self, plan: StepPlan, limit: int, window_tokens: IntArray | None
    ) -> tuple[Sequence[Sequence[float]], Sequence[Sequence[float]]]:
        """Time in each stage and on the link behind it (s), of each of the first steps of a plan.

        Parameters
        ----------
        plan : StepPlan
            What the steps compute.
        limit : int
            How many.
        window_tokens : int array, optional
            Window-capped sums of the contexts of each step, in a model with a sliding window.
        """
        if not plan.chunks:
            size, context = plan.num_decodes, plan.context_tokens
            by_stage = [
                stage.decode_gpu_s(size, context, limit, window_tokens).tolist()
                for stage in self._stages
            ]
            return list(zip(*by_stage, strict=True)), [self._handed_s(size)] * limit
        shapes = [
            plan.shape(None if window_tokens is None else int(window_tokens[step]), step)
            for step in range(limit)
        ]
        run_s = [[stage.gpu_s(shape) for stage in self._stages] for shape in shapes]
        return run_s, [self._handed_s(shape.num_tokens) for shape in shapes]

    def _handed_s(self, num_tokens: int) -> list[float]:
        """Time on the link behind each stage (s); none behind the last."""
        return [*(handover_s(self._model, link, num_tokens) for link in self._links), 0.0]

    def pass_through(self, shape: StepShape) -> Generator[simpy.Event, Any, float]:
        """Enter now; return when the last stage is done with the batch (s)."""
        if self._ranks is None:
            return self.closed_form.push(self._env.now, shape)
        batch = _Batch(self._env, shape, len(self._stages))
        # It has its place in every queue from now on: batches do not overtake on the way.
        for queue in self._queues:
            queue.put(batch)
        batch.reached[0].succeed()
        yield batch.done
        return self._env.now

    def _run(self, number: int) -> Generator[simpy.Event, Any, None]:
        """One stage, kernel by kernel."""
        assert self._ranks is not None
        env, stage, ranks = self._env, self._stages[number], self._ranks[number]
        last = number == len(self._stages) - 1
        while True:
            batch: _Batch = yield self._queues[number].get()
            yield batch.reached[number]
            schedule = stage.kernels(batch.shape)
            # The batch waits for the host work at both ends of the pipeline, the stages do not.
            yield ranks.run(replace(schedule, host_before_s=0.0, host_after_s=0.0))
            if last:
                batch.done.succeed()
                continue
            delay_s = handover_s(self._model, self._links[number], batch.shape.num_tokens)
            arrival = At(env, env.now + delay_s, TRANSFER_END)
            arrival.callbacks.append(batch.reached[number + 1].trigger)
