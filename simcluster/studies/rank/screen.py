"""The analytic screen: what each part of a deployment could carry at most, by the roofline.

No queue, no chance: lengths as drawn, every part always busy in its best batch. The least of the
parts bounds the goodput, and names what is short.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from simcluster.config import Environment
from simcluster.engine.groups.cluster import Cluster, Placed
from simcluster.rng import stream
from simcluster.roofline import StepTime
from simcluster.roofline.base import StepShape
from simcluster.roofline.layout import Layout
from simcluster.roofline.sources import beyond_tp, source_of, times_of
from simcluster.scenario.scenario import Scenario
from simcluster.strategies import FuDG, SchedulerSettings, Strategy
from simcluster.studies.space import build
from simcluster.units import FloatArray, IntArray

_NUM_LENGTHS: Final = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Lengths:
    """Requests of the workload, without their times."""

    prompts: IntArray
    outputs: IntArray
    """Tokens, shape ``(num_requests,)``."""
    cached_share: float = 0.0
    """Share of the prompt tokens that prefix caches hold, 0 to 1: not computed, not sent."""

    @classmethod
    def of(cls, scenario: Scenario) -> Lengths:
        """Draw lengths of `scenario`'s workload; those too long to be served are left out."""
        lengths = scenario.workload.length_distribution
        assert lengths is not None, "ranked workloads have a length distribution"
        prompts, outputs = lengths.draw(_NUM_LENGTHS, stream(scenario.run.seeds[0], "screen"))
        kept = prompts + outputs <= scenario.environment.model.max_model_len
        return cls(prompts=prompts[kept], outputs=outputs[kept])

    @property
    def prompt(self) -> int:
        """Mean prompt, as far as no cache holds it (tokens)."""
        return max(1, round(float(self.prompts.mean()) * (1.0 - self.cached_share)))

    @property
    def steps(self) -> float:
        """Mean number of decode steps: output tokens but the first."""
        return float(self.outputs.mean()) - 1.0

    @property
    def context(self) -> float:
        """Mean tokens in the KV cache of a decoding request, over decode steps; >= 1.

        The mean prompt where no request decodes.
        """
        steps = np.maximum(self.outputs - 1, 0)
        if not steps.any():
            return float(self.prompts.mean())
        total = float((steps * (self.prompts + self.outputs / 2)).sum())
        return total / max(1.0, float(steps.sum()))


@dataclass(frozen=True, slots=True, kw_only=True)
class Bound:
    """What the parts of a candidate carry at most (requests/s); inf where it has no such part."""

    total_rps: float
    """Bound of the goodput: what all parts carry, over the wanted attainment, for the requests that
    may miss need not be served well."""
    prefill_rps: float
    decode_rps: float
    """All prefills, or all decode steps, if the GPUs that do them did nothing else."""
    link_rps: float
    """KV transfers over the slowest kind of link they take."""
    batch: int
    memory_batch: int
    """Sequences in a decode step: the most within target, limits and memory; within memory
    alone."""
    dispatch_share: float
    """Share of that step in which the GPU waits for the CPU, 0 to 1."""
    alone_share: float
    """Share of the requests within the targets when they are alone, 0 to 1."""
    alone_ttft_s: float
    alone_tpot_s: float
    """Latencies that the wanted share of requests gets when alone (s)."""
    residence_s: float
    """Mean residence time of a request that never waits, in that batch (s)."""
    num_gpus: int
    """GPUs it takes; where instances come and go, those of the most in service."""
    ramp_s: float | None = None
    """Where instances come and go: the least time until all can serve (s)."""


class Screen:
    """Bounds of candidates, for one set of machines and lengths."""

    def __init__(self, environment: Environment, lengths: Lengths) -> None:
        self._environment, self._lengths = environment, lengths
        self._times: dict[tuple[Layout, int], _Times] = {}
        self._alone: dict[tuple[Layout, int], FloatArray] = {}

    def bound(self, strategy: Strategy) -> Bound:
        """Return what `strategy`, a candidate that fits, carries at most.

        Where instances come and go, with the most that may be in service.
        """
        environment, lengths = self._environment, self._lengths
        slo = environment.slo.loosest()
        cluster = build(environment, strategy)
        # Disaggregated pools come prefill first.
        first, last = cluster.placed[0], cluster.placed[-1]
        instance, stages = last.instance, last.pp_size
        before, prefills = self._times_of(first)
        times, _ = self._times_of(last)
        # A pipeline names the blocks of one of its batches, of which it has one per stage; and
        # data-parallel ranks have batches of their own.
        lanes = stages * last.layout.dp_size
        fit = instance.free_blocks // instance.blocks_for(math.ceil(lengths.context))
        memory_batch = max(1, lanes * fit)
        limit = getattr(strategy, "max_num_seqs", None) or environment.engine.max_num_seqs
        most = max(1, min(limit * lanes, memory_batch))
        batch = _largest_batch(times, most, lengths.context, slo.tpot_s)
        count = cluster.most_instances
        prefill_s = before.prefill_s(lengths, _prefill_tokens(environment, strategy))
        decode_s = lengths.steps * times.decode_s(batch, lengths.context) / batch
        link_rps = math.inf
        if "mixed" in count:
            prefill_rps = count["mixed"] / prefill_s
            decode_rps = count["mixed"] / decode_s if decode_s > 0 else math.inf
            splits = isinstance(strategy, SchedulerSettings) and strategy.splits_prompts
            # In a chunked step prefill computes while decode loads: at best one hides the other.
            busy_s = max(prefill_s, decode_s) if splits else prefill_s + decode_s
            total = count["mixed"] / busy_s
        else:
            prefill_rps = count["prefill"] / prefill_s
            decode_rps = count["decode"] / decode_s if decode_s > 0 else math.inf
            link_rps = _link_rps(environment, strategy, cluster, lengths)
            total = min(prefill_rps, decode_rps, link_rps)
            if cluster.scaled:  # both roles at their most may be more than there are machines
                gpus_per_rps = (
                    first.num_gpus * count["prefill"] / prefill_rps,
                    last.num_gpus * count["decode"] / decode_rps,
                )
                total = min(total, environment.cluster.num_gpus / sum(gpus_per_rps))
        tpot_s = times.decode_s(1, lengths.context)
        alone = prefills <= (slo.ttft_s or math.inf)
        if slo.tpot_s is not None and tpot_s > slo.tpot_s:
            alone &= lengths.outputs <= 1
        return Bound(
            total_rps=total / slo.attainment,
            prefill_rps=prefill_rps,
            decode_rps=decode_rps,
            link_rps=link_rps,
            batch=batch,
            memory_batch=memory_batch,
            dispatch_share=times.dispatch_share(batch, lengths.context),
            alone_share=float(alone.mean()),
            alone_ttft_s=float(np.quantile(prefills, slo.attainment)),
            alone_tpot_s=tpot_s,
            residence_s=float(prefills.mean()) + decode_s * batch,
            num_gpus=cluster.most_gpus,
            ramp_s=max((scaled.ramp_s for scaled in cluster.scaled), default=None),
        )

    def _times_of(self, placed: Placed) -> tuple[_Times, FloatArray]:
        """Return step times of such an instance, and the prefill of each prompt alone (s)."""
        key = placed.layout, placed.pp_size
        if key not in self._times:
            self._times[key] = _Times(self._environment, *key)
            prefill_s = placed.instance.prefill_s
            self._alone[key] = np.array([prefill_s(int(p)) for p in self._lengths.prompts])
        return self._times[key], self._alone[key]


class _Times:
    """Step times of an instance, with all its stages."""

    def __init__(self, environment: Environment, layout: Layout, stages: int) -> None:
        def all_stages(env: Environment) -> Sequence[StepTime]:
            source = source_of(env)
            if stages == 1:
                return [times_of(source, env, layout)]
            of_each = source.stages(
                env, layout.tp_size, stages, key="rank.pp_sizes", **beyond_tp(layout)
            )
            assert of_each is not None, "a pipeline that was placed has stages"
            return of_each

        engine = dataclasses.replace(
            environment.engine,
            host_before_s=0.0,
            host_after_s=0.0,
            host_per_seq_before_s=0.0,
            host_per_seq_after_s=0.0,
            host_workers_s=0.0,
            issue_s=0.0,
            graph_issue_s=0.0,
        )
        self._reach = environment.model.spec.reach
        self._num_ranks = layout.dp_size
        self._stages = all_stages(environment)
        self._no_cpu = all_stages(dataclasses.replace(environment, engine=engine))

    def decode_s(self, batch: int, context: float) -> float:
        """Return the time of a decode step of `batch` sequences in all (s)."""
        return self._decode_s(self._stages, batch, context)

    def _decode_s(self, stages: Sequence[StepTime], batch: int, context: float) -> float:
        # Each stage, and each data-parallel rank, works on its own share of the sequences; a step
        # passes all stages.
        own = max(1, batch // (len(stages) * self._num_ranks))
        tokens = round(own * context)
        reached = tokens if self._reach is None else own * self._reach.of(math.ceil(context))
        others = (self._num_ranks - 1) * own
        shape = StepShape(own, tokens, (), own, min(tokens, reached), others)
        return sum(_busy_s(stage, shape) for stage in stages)

    def dispatch_share(self, batch: int, context: float) -> float:
        """Return the share of a decode step that it would not take without CPU work, 0 to 1."""
        whole = self.decode_s(batch, context)
        return 1.0 - self._decode_s(self._no_cpu, batch, context) / whole

    def prefill_s(self, lengths: Lengths, tokens: int) -> float:
        """Return the time per prompt in full prefill steps of up to `tokens` (s), per instance.

        Of a pipeline the slowest stage, for the others work meanwhile; with data-parallel ranks all
        of them do the same.
        """
        per_step = max(1, tokens // lengths.prompt)
        chunks = ((lengths.prompt, 0),) * per_step
        others = (self._num_ranks - 1) * per_step * lengths.prompt
        shape = StepShape(0, 0, chunks, per_step, 0, others)
        slowest_s = max(_busy_s(stage, shape) for stage in self._stages)
        return slowest_s / (per_step * self._num_ranks)


def _busy_s(stage: StepTime, shape: StepShape) -> float:
    """Time of one of many equal steps in a row (s), host work under the step before if it can."""
    return stage.step_s(shape, stage.gpu_s(shape) if stage.overlaps_host else 0.0)


def _prefill_tokens(environment: Environment, strategy: Strategy) -> int:
    """Most tokens of a prefill step; of a chunked one as many prompts as an unchunked step has."""
    given: Any = getattr(strategy, "max_num_batched_tokens", None)
    return int(
        given
        or environment.engine.max_num_batched_tokens
        or max(environment.model.max_model_len, 2048)
    )


def _largest_batch(times: _Times, most: int, context: float, tpot_s: float | None) -> int:
    """Largest batch of at most `most` whose decode step keeps the target, at least 1."""
    if tpot_s is None or times.decode_s(most, context) <= tpot_s:
        return most
    low, high = 1, most
    while high - low > 1:
        middle = (low + high) // 2
        if times.decode_s(middle, context) <= tpot_s:
            low = middle
        else:
            high = middle
    return low


def _link_rps(
    environment: Environment, strategy: Strategy, cluster: Cluster, lengths: Lengths
) -> float:
    """Requests/s whose KV cache the links carry, all senders or all receivers together.

    Where instances come and go nobody knows on which nodes: then NICs do not limit the bound.
    """
    assert isinstance(strategy, FuDG), "only FuDG moves the KV cache"
    config = environment.cluster
    # What layers with a window send is left out: on average it is less than for the mean prompt.
    kv_bytes = environment.model.kv_bytes_per_kept_token * lengths.prompt
    placed_as = {
        role: [placed for placed in cluster.placed if placed.role == role]
        for role in ("prefill", "decode")
    }
    most = cluster.most_instances
    gpus = {role: most[role] * own[0].num_gpus for role, own in placed_as.items()}
    if strategy.placement == "intra-node":
        lane = config.fabric.bandwidth * config.fabric.efficiency
        return min(gpus.values()) * lane / kv_bytes
    nodes = {role: {placed.node for placed in own} for role, own in placed_as.items()}
    limits = [min(gpus.values()) * config.pcie.bandwidth * config.pcie.efficiency]
    apart = not nodes["prefill"] & nodes["decode"] and not cluster.scaled
    if config.network is not None and apart:
        nic = config.num_nics * config.network.bandwidth * config.network.efficiency
        limits.append(min(len(own) for own in nodes.values()) * nic)
    return min(limits) / kv_bytes
