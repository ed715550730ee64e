"""The stages of a pipelined instance, as its batches in flight meet them."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import replace
from typing import Any

import simpy

from simcluster.config import ModelConfig
from simcluster.engine.clock import TRANSFER_END, At, Clock
from simcluster.engine.dispatcher import RankGroup
from simcluster.roofline import Pipeline, RooflineStepTime, handover_s
from simcluster.roofline.base import StepShape
from simcluster.specs import LinkSpec


class _Batch:
    """A batch on its way: when it has reached each stage, and when it has left the last."""

    __slots__ = ("done", "reached", "shape")

    def __init__(self, env: Clock, shape: StepShape, num_stages: int) -> None:
        self.shape = shape
        self.reached = [simpy.Event(env) for _ in range(num_stages)]
        self.done = simpy.Event(env)


class PipelineStages:
    """Stages that work on one batch at a time, in the order in which batches came.

    Parameters
    ----------
    env : Clock
        The run.
    stages : sequence of RooflineStepTime
        Step times of each stage.
    model : ModelConfig
        Whose activations go from stage to stage.
    links : sequence of LinkSpec
        From each stage to the next.
    ranks : sequence of RankGroup, optional
        Dispatchers and GPUs of each stage: kernel by kernel. Without them the passage of a batch is
        computed when it enters (`simcluster.roofline.Pipeline`).
    """

    def __init__(
        self,
        env: Clock,
        stages: Sequence[RooflineStepTime],
        model: ModelConfig,
        links: Sequence[LinkSpec],
        ranks: Sequence[RankGroup] | None = None,
    ) -> None:
        self._env = env
        self._stages = stages
        self._model = model
        self._links = links
        self.closed_form = Pipeline(stages, model, links)
        self._ranks = ranks
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
            known = sum(self.host_s(shape)) + self.closed_form.latency_s(shape)
            self._prefill_s[prompt_len] = known
        return known

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
