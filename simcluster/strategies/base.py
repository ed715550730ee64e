"""What a serving strategy is: settings from the scenario file that build a deployment."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Final, Literal, Protocol

from pydantic import Field

from simcluster.catalog.specs import EngineProfile
from simcluster.config import Environment, Name, Settings
from simcluster.engine.clock import Clock
from simcluster.engine.groups.cluster import Cluster, Deployment
from simcluster.engine.recorder import Recorder
from simcluster.engine.shape import InstanceShape
from simcluster.errors import ConfigError, nearest
from simcluster.registry import NameIn
from simcluster.roofline.layout import AllToAll
from simcluster.routing import ROUTERS, PrefixAware, Router
from simcluster.sched import QUEUES, SCHEDULERS, RequestQueue, splitting


class Strategy(Protocol):
    """Settings of a strategy: a frozen dataclass with one field per key of ``[[strategy]]``.

    Field types carry unit, rule and meaning as ``Annotated[..., Field(...)]``; the scenario reader
    validates with them and ``simcluster schema`` prints them.
    """

    # Properties: settings are frozen, and their `kind` is a literal.
    @property
    def kind(self) -> str:
        """Name in the registry, the ``kind`` of its table."""

    @property
    def name(self) -> str:
        """Name in tables and plots."""

    def build(self, cluster: Cluster) -> Deployment:
        """Create instances, routing and links in `cluster` and return the entry point.

        Raises
        ------
        ConfigError
            If the deployment does not fit the machines.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class CommonSettings(Settings):
    """Keys that every strategy takes."""

    name: Name
    """Name in tables and plots."""
    tp_size: Annotated[int, Field(ge=1)] = 1
    """GPUs of a tensor-parallel group."""
    pp_size: Annotated[int, Field(ge=1)] = 1
    """Stages of a pipeline; as many batches are in flight, each with its share of the KV blocks and
    its own max_num_seqs."""
    dp_size: Annotated[int, Field(ge=1)] = 1
    """Data-parallel ranks of attention in an instance, of tp_size GPUs each, for models with
    experts. Each has sequences and KV blocks of its own (max_num_seqs, num_kv_blocks); their steps
    are in lock-step."""
    ep_size: Annotated[int, Field(ge=1)] = 1
    """Groups of GPUs with different experts, over all GPUs of an instance; 1: every expert is split
    over all of them."""
    redundant_experts: Annotated[int, Field(ge=0)] = 0
    """Replicas of experts beside the model's own, in all groups together (EPLB)."""
    all_to_all: AllToAll = "gather"
    """How tokens reach the experts of other data-parallel ranks: gather: all tokens to all ranks
    and sums back (all-gather, reduce-scatter); low-latency, throughput: each to its experts, by
    DeepEP's kernels."""
    expert_skew: Annotated[float, Field(ge=1, le=1024)] = 1.0
    """Tokens of the busiest group of experts over the mean of all, at least; default: what chance
    alone makes, with a router that picks all experts alike."""
    max_num_seqs: Annotated[int | None, Field(ge=1)] = None
    """Most sequences running at once; default: the engine's."""
    max_num_batched_tokens: Annotated[int | None, Field(ge=1)] = None
    """Most tokens of one prefill step; where prompts are split the budget of any step, in the place
    of chunk_size; default: the engine's."""
    instances_per_node: Annotated[int | None, Field(ge=1)] = None
    """Most instances on one node; default: as many as fit."""
    num_kv_blocks: Annotated[int | None, Field(ge=1, le=1_000_000_000)] = None
    """KV blocks of an instance; default: what fits in memory."""
    prefix_caching: bool | None = None
    """Requests with a common prefix share its KV blocks; default: the engine's."""
    preemption: Literal["recompute", "swap"] = "recompute"
    """recompute: a preempted request loses its KV; swap: it is copied to host memory and back,
    while there is room."""
    swap_bytes: Annotated[float, Field(gt=0, le=1e14)] = 4.0 * 2**30
    """Host memory for swapped KV, per GPU (bytes); vLLM: 4 GiB."""
    tp_across_nodes: bool = False
    """A tensor-parallel group may be larger than a node; it takes whole nodes."""

    queue: Annotated[str, NameIn(QUEUES)] = "first-come"
    """Order in which waiting requests are admitted: first come, shortest prompt first, or by the
    priority of their class."""

    def budget(self, engine: EngineProfile) -> int:
        """Return the token budget of a step of a scheduler that splits prompts.

        As in vLLM, ``max_num_batched_tokens`` is the budget where it is given.
        """
        given = self.max_num_batched_tokens or engine.max_num_batched_tokens
        return given or engine.chunk_size

    def make_queue(self) -> RequestQueue:
        """Return the queue of requests that wait in front of the instances, empty."""
        return QUEUES[self.queue]()

    def shape(self, scheduler: str = "prefill-priority", chunk: int | None = None) -> InstanceShape:
        """Return what each instance is made of; `chunk` is the token budget of a chunked step."""
        return InstanceShape(
            strategy=self.name,
            tp_size=self.tp_size,
            pp_size=self.pp_size,
            scheduler=scheduler,
            queue=self.queue,
            max_num_seqs=self.max_num_seqs,
            max_num_batched_tokens=chunk or self.max_num_batched_tokens,
            instances_per_node=self.instances_per_node,
            num_kv_blocks=self.num_kv_blocks,
            prefix_caching=self.prefix_caching,
            swap_bytes=self.swap_bytes if self.preemption == "swap" else 0.0,
            tp_across_nodes=self.tp_across_nodes,
            dp_size=self.dp_size,
            ep_size=self.ep_size,
            redundant_experts=self.redundant_experts,
            all_to_all=self.all_to_all,
            expert_skew=self.expert_skew,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerSettings(CommonSettings):
    """Keys of the strategies whose instances prefill and decode."""

    scheduler: Annotated[str | None, NameIn(SCHEDULERS)] = None
    """What an instance runs next; default: what the engine's instances do."""
    chunk_size: Annotated[int | None, Field(ge=1)] = None
    """Token budget of a step (tokens), with a scheduler that splits prompts (chunked); default: the
    engine's."""

    @property
    def splits_prompts(self) -> bool:
        """Whether a prompt may be computed in chunks over several steps; False if not yet known."""
        return self.scheduler is not None and SCHEDULERS[self.scheduler].splits_prompts

    def mixed_shape(self, cluster: Cluster) -> InstanceShape:
        """Return what each instance is made of.

        Raises
        ------
        ConfigError
            If `chunk_size` is given to a scheduler without chunks.
        """
        engine = cluster.environment.engine
        scheduler = self.scheduler or scheduler_of(engine)
        if SCHEDULERS[scheduler].splits_prompts:
            return self.shape(scheduler, self.chunk_size or self.budget(engine))
        if self.chunk_size is not None:
            raise ConfigError(
                self.shape().key("chunk_size"),
                self.chunk_size,
                f"scheduler {scheduler!r} does not split prompts into chunks",
                f"Leave it out, or use scheduler = {' or '.join(map(repr, splitting()))}.",
            )
        return self.shape(scheduler)


def scheduler_of(engine: EngineProfile) -> str:
    """Return the scheduler of the instances of `engine`, a key of `SCHEDULERS`.

    Raises
    ------
    ConfigError
        If none of this name is registered.
    """
    if engine.scheduler in SCHEDULERS:
        return engine.scheduler
    hint = nearest(engine.scheduler, SCHEDULERS)
    raise ConfigError("engine.scheduler", engine.scheduler, "no such scheduler", hint)


def with_defaults_of(engine: EngineProfile, strategy: Strategy) -> Strategy:
    """Return `strategy` with the scheduler of `engine` where it names none."""
    if not isinstance(strategy, SchedulerSettings) or strategy.scheduler is not None:
        return strategy
    return replace(strategy, scheduler=scheduler_of(engine))


# Without slots: NoDG has these keys and those of SchedulerSettings, and two bases with slots clash.
@dataclass(frozen=True, kw_only=True)
class RouterSettings(CommonSettings):
    """Keys of the strategies with a router in front of their instances."""

    router: Annotated[str, NameIn(ROUTERS)] = "least-loaded"
    """Which instance gets a request; in fudg, which prefill instance."""
    prefix_weight: Annotated[float, Field(ge=0, le=1_000_000)] = 1.0
    """Tokens of load that a cached token outweighs, with router prefix-aware."""
    status_interval_s: Annotated[float, Field(ge=0, le=86_400)] = 0.0
    """The router knows the load of the instances as it was at the last multiple of this time (s),
    and what it sent them since; 0: as it is."""

    def make_router(self) -> Router:
        """Return the router in its initial state."""
        if self.router == "prefix-aware":
            return PrefixAware(self.prefix_weight)
        return ROUTERS[self.router]()


ONE_OF_EACH: Final = ("nodg", "fudg", "padg")
"""Kinds of strategies that serve one model on GPUs of one type."""


def used_by(strategy: Strategy, environment: Environment) -> Environment:
    """Return the part of `environment` that `strategy` can use.

    The first model on the first machines, with the limits that the engine has on them, for a kind
    of `ONE_OF_EACH`; else all.
    """
    several = len(environment.models) > 1 or len(environment.clusters) > 1
    if strategy.kind not in ONE_OF_EACH or not several:
        return environment
    return environment.part(environment.model.spec.name, environment.cluster.gpu.name)


def dry_run(environment: Environment, strategy: Strategy, *, resolution: str = "span") -> Cluster:
    """Return idle machines on which `strategy` has been built, to look at or to be refused.

    Raises
    ------
    ConfigError
        If the deployment does not fit the machines.
    """
    used = used_by(strategy, environment)
    cluster = Cluster(Clock(), used, Recorder(), resolution=resolution)
    strategy.build(cluster)
    return cluster


def count_that_fits(
    cluster: Cluster, shape: InstanceShape, wanted: int | None, key: str = "instances"
) -> int:
    """Return `wanted` instances of `shape`, or as many as the cluster still holds.

    Raises
    ------
    ConfigError
        If they do not all fit, or not even one does.
    """
    most = cluster.num_that_fit(shape)
    if wanted is None:
        wanted = max(most, 1)
    if wanted > most:
        machines = cluster.environment.cluster
        raise ConfigError(
            shape.key(key),
            wanted,
            f"{wanted} instances of {shape.num_gpus} GPUs do not fit: the cluster has "
            f"{machines.num_nodes} nodes of {machines.gpus_per_node} GPUs and holds {most}",
            f"Use at most {most}, a smaller tp_size, or more nodes.",
        )
    return wanted
