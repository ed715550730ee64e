"""Instances of one role on paper: weights, KV cache, batches and step times."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from simcluster.config import Environment, SchedulerConfig
from simcluster.engine.groups.cluster import Cluster, Placed
from simcluster.engine.instance import Instance, InstanceLike
from simcluster.engine.instance.pipelined import PipelinedInstance
from simcluster.errors import InvariantError
from simcluster.roofline.base import StepShape, StepTime
from simcluster.roofline.layout import Layout
from simcluster.roofline.memory import (
    ProfilingPass,
    block_bytes,
    kv_bytes_per_token_per_gpu,
    kv_pool_bytes,
    weight_bytes_per_gpu,
)
from simcluster.roofline.of_environment import expert_links, group_fabric
from simcluster.roofline.sources import beyond_tp, source_of, times_of
from simcluster.sched import SCHEDULERS, Scheduler
from simcluster.studies.check.requests import Requests
from simcluster.units import GB


@dataclass(frozen=True, slots=True)
class Pool:
    """Equal instances of one role, one model and one GPU type."""

    role: str
    """``"mixed"``, ``"prefill"`` or ``"decode"``."""
    environment: Environment
    """Its model and its machines."""
    instances: tuple[Placed, ...]
    """Where they stand."""
    scheduler: Scheduler
    """That of one of them, of a pipeline of one of its lanes."""

    @property
    def layout(self) -> Layout:
        """How an instance is laid out, its pipeline apart."""
        return self.instances[0].layout

    @property
    def tp_size(self) -> int:
        """GPUs of a tensor-parallel group."""
        return self.layout.tp_size

    @property
    def pp_size(self) -> int:
        """Stages of a pipeline."""
        return self.instances[0].pp_size

    @property
    def num_lanes(self) -> int:
        """Batches in flight: one per stage of a pipeline, or per data-parallel rank."""
        return self.pp_size * self.layout.dp_size

    @property
    def limits(self) -> SchedulerConfig:
        """Limits of a step."""
        return self.scheduler.config

    def longest_batch(self, num_tokens: int) -> tuple[int, int]:
        """Return sequences of `num_tokens` tokens that run at once, and those that memory holds.

        The first is the smaller of the second and ``max_num_seqs``; all lanes of a pipeline.
        """
        pool = self.scheduler.pool
        if self.role == "prefill":
            each = pool.prompt_blocks(num_tokens)
        else:
            each = pool.blocks_for(num_tokens)
        held = self.num_lanes * (pool.num_blocks // max(each, 1))
        return min(held, self.num_lanes * self.limits.max_num_seqs), held


def pools_of(cluster: Cluster, environment: Environment) -> Iterator[Pool]:
    """Give the pools of a deployment, in the order in which they were placed."""
    groups: dict[tuple[object, ...], list[Placed]] = {}
    for one in cluster.placed:
        kind = (one.role, one.model, one.gpu, one.num_gpus, one.layout)
        groups.setdefault(kind, []).append(one)
    for own in groups.values():
        part = environment.part(own[0].model, own[0].gpu)
        yield Pool(own[0].role, part, tuple(own), _scheduler(own[0].instance))


def _scheduler(instance: InstanceLike) -> Scheduler:
    if isinstance(instance, PipelinedInstance):
        return instance.lanes[0].scheduler
    if not isinstance(instance, Instance):
        raise InvariantError(f"an instance of an unknown kind, {type(instance).__name__}")
    return instance.scheduler


def facts(pool: Pool, requests: Requests) -> dict[str, Any]:
    """Return what is known of a pool without simulating, as JSON has it (bytes, tokens, s)."""
    environment, tp_size, pp_size = pool.environment, pool.tp_size, pool.pp_size
    model, engine, gpu = environment.model, environment.engine, environment.cluster.gpu
    scheduler, limits = pool.scheduler, pool.limits
    profiled = ProfilingPass.of(
        model, gpu, engine, limits.max_num_batched_tokens, limits.max_num_seqs
    )
    layout = scheduler.pool.layout
    stages = range(pp_size)
    size = [block_bytes(model, engine, tp_size, layout, pp_size, stage) for stage in stages]
    room = [
        kv_pool_bytes(model, gpu, engine, tp_size, pp_size, stage, profiled, pool.layout)
        for stage in stages
    ]
    num_blocks = pp_size * scheduler.pool.num_blocks
    held = requests.prompt_len + (0 if pool.role == "prefill" else requests.output_len)
    batch, in_memory = pool.longest_batch(held)
    known: dict[str, Any] = {
        "role": pool.role,
        "model": model.spec.name,
        "gpu": gpu.name,
        "instances": len(pool.instances),
        "tp_size": tp_size,
        "pp_size": pp_size,
        "dp_size": pool.layout.dp_size,
        "ep_size": pool.layout.ep_size,
        "scheduler": scheduler_name(scheduler),
        "max_num_seqs": limits.max_num_seqs,
        "max_num_batched_tokens": limits.max_num_batched_tokens,
        "weight_bytes_per_gpu": max(
            weight_bytes_per_gpu(model, tp_size, pp_size, stage, pool.layout) for stage in stages
        ),
        "kv_bytes_per_token_per_gpu": max(
            kv_bytes_per_token_per_gpu(model, tp_size, pp_size, stage) for stage in stages
        ),
        "kv_room_bytes_per_gpu": min(room),
        "kv_bytes_per_gpu": max(size) * num_blocks,
        "kv_blocks": num_blocks * pool.layout.dp_size,
        "kv_pool_tokens": _tokens(pool, num_blocks * pool.layout.dp_size),
        "batch": batch,
        "batch_in_memory": in_memory,
    }
    steps = Steps(pool)
    if pool.role != "decode":
        known["prefill_s"] = steps.prefill_s(requests.prompt_len)
    if pool.role != "prefill":
        context = requests.prompt_len + max(1, requests.output_len // 2)
        most = max(1, batch)
        known["decode_s"] = steps.decode_s(1, context)
        known["decode_s_of_batch"] = steps.decode_s(most, context)
        known["decode_context_len"] = context
    return known


def scheduler_name(scheduler: Scheduler) -> str:
    """Return the name that scenario files give to a scheduler."""
    known = (name for name in SCHEDULERS if SCHEDULERS[name] is type(scheduler))
    return next(known, type(scheduler).__name__)


def _tokens(pool: Pool, num_blocks: int) -> int:
    """Tokens that the KV pool of an instance holds.

    Of layers that do not keep all tokens: in sequences of ``max_model_len``, as vLLM logs it.
    """
    layout, longest = pool.scheduler.pool.layout, pool.environment.model.max_model_len
    if not layout.limited:
        return num_blocks // layout.full * layout.block_size
    return int(num_blocks / layout.blocks_for(longest) * longest)


class Steps:
    """Step times of an instance of a pool, with all its stages, one batch alone."""

    def __init__(self, pool: Pool) -> None:
        environment, layout, pp_size = pool.environment, pool.layout, pool.pp_size
        source = source_of(environment)
        self._stages: Sequence[StepTime] = ()
        if pp_size == 1:
            self._stages = [times_of(source, environment, layout)]
        else:
            stages = source.stages(
                environment, layout.tp_size, pp_size, key="pp_size", **beyond_tp(layout)
            )
            self._stages = stages or ()
        self._reach = environment.model.spec.reach
        self._num_lanes = pool.num_lanes
        self._num_ranks = layout.dp_size
        self._budget = pool.limits.max_num_batched_tokens
        self._splits = type(pool.scheduler).splits_prompts

    def _step_s(self, shape: StepShape, *, first: bool = False) -> float:
        """Time of one of many steps (s), host work hidden if the engine can; or of the first."""
        return sum(
            stage.step_s(shape, stage.gpu_s(shape) if stage.overlaps_host and not first else 0.0)
            for stage in self._stages
        )

    def prefill_s(self, prompt_len: int) -> float:
        """Time to prefill one prompt alone (s), chunk by chunk where the scheduler splits it."""
        size = min(prompt_len, self._budget) if self._splits else prompt_len
        total, done = 0.0, 0
        while done < prompt_len:
            new = min(size, prompt_len - done)
            last = done + new == prompt_len
            idle = self._num_ranks - 1  # each with a dummy token
            shape = StepShape(0, 0, ((new, done),), int(last), 0, idle)
            total += self._step_s(shape, first=not done)
            done += new
        return total

    def decode_s(self, num_seqs: int, context_len: int) -> float:
        """Time of a decode step of `num_seqs` sequences of `context_len` tokens each (s).

        Of a pipeline or data-parallel ranks that of one of its lanes, which has its share of the
        sequences.
        """
        own = max(1, num_seqs // self._num_lanes)
        return self._step_s(self._decodes(own, context_len, ()))

    def _decodes(
        self, num_seqs: int, context_len: int, chunks: tuple[tuple[int, int], ...]
    ) -> StepShape:
        tokens = num_seqs * context_len
        reached = tokens if self._reach is None else num_seqs * self._reach.of(context_len)
        shape = StepShape(num_seqs, tokens, chunks, num_seqs, reached)
        return shape._replace(other_tokens=(self._num_ranks - 1) * shape.num_tokens)

    def steady_rps(self, prompt_len: float, output_len: float, most_seqs: int) -> float:
        """Rate (requests/s) at which an instance that splits prompts gets through equal requests.

        Every step decodes `most_seqs` sequences (fewer where the budget of a step is the limit) and
        computes as much of the prompts as keeps their number: a share ``prompt / (output - 1)`` of
        a chunk for each decoded token.
        """
        per_decode = prompt_len / (output_len - 1) if output_len > 1 else math.inf
        own = most_seqs / self._num_ranks
        num_seqs = min(own, self._budget / (1 + per_decode))
        decodes = int(num_seqs)
        new = self._budget if not decodes else round(decodes * per_decode)
        whole, rest = divmod(max(new, 1), max(1, round(prompt_len)))
        chunks = ((round(prompt_len), 0),) * whole
        if rest:  # a part of a prompt, from somewhere in its middle
            chunks += ((rest, max(0, round((prompt_len - rest) / 2))),)
        others = (self._num_ranks - 1) * max(new, 1)
        shape = StepShape(0, 0, chunks, max(whole, 1), 0, others)
        if decodes:
            shape = self._decodes(decodes, round(prompt_len + output_len / 2), chunks)
        return self._num_ranks * max(new, 1) / prompt_len / self._step_s(shape)


def links(pools: Iterable[Pool]) -> list[dict[str, Any]]:
    """Return the links inside the instances of pools: what for, bandwidth, what is reached."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for pool in pools:
        cluster = pool.environment.cluster
        used = []
        if pool.tp_size > 1:
            used.append(("all-reduce", group_fabric(cluster, pool.tp_size)))
        if pool.layout.dp_size > 1:
            to_experts = expert_links(cluster, pool.layout)
            used.append(("to experts", to_experts.group))
            if to_experts.between is not None:
                used.append(("to experts on other nodes", to_experts.between))
        if pool.pp_size > 1:
            crosses = pool.pp_size * pool.tp_size > cluster.gpus_per_node
            between = cluster.network if crosses and cluster.network else cluster.fabric
            used.append(("between stages", between))
        for purpose, link in used:
            measured = purpose == "all-reduce" and bool(link.allreduce_terms)
            share = link.efficiency
            if purpose == "all-reduce":
                terms = [t.efficiency for t in link.allreduce_terms if t.tp_size == pool.tp_size]
                share = max(terms, default=link.allreduce_efficiency)
            found[(purpose, link.name)] = {
                "purpose": purpose,
                "link": link.name,
                "gb_per_s": link.bandwidth / GB,
                "reached_share": share,
                "accuracy": "measured" if measured else "data-sheet",
                "source": link.source,
            }
    return list(found.values())
