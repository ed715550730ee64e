"""The machines of a run, and what a strategy builds on them."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate, pairwise
from math import nan
from typing import Protocol

from simcluster.config import ClusterConfig, Environment, SchedulerConfig
from simcluster.engine.clock import Clock
from simcluster.engine.dispatcher import RankGroup
from simcluster.engine.instance import Instance, InstanceLike
from simcluster.engine.link import Link, LinkNetwork, Path
from simcluster.engine.pipeline import PipelineStages
from simcluster.engine.pipelined import PipelinedInstance
from simcluster.engine.recorder import Recorder
from simcluster.errors import ConfigError, InvariantError
from simcluster.kvcache import BlockPool, PrefixPool
from simcluster.request import Request
from simcluster.roofline import RooflineStepTime, StepTime, check_pp, pipeline_stages
from simcluster.roofline.memory import kv_blocks, kv_bytes_per_token_per_gpu
from simcluster.sched import SCHEDULERS
from simcluster.units import on_grid

StepTimeFactory = Callable[[Environment, int], StepTime]
"""From the environment and a tensor-parallel degree to the step times of such an instance."""


def roofline_step_time(environment: Environment, tp_size: int) -> StepTime:
    """Step times of the roofline model on the cluster's GPU and fabric."""
    cluster = environment.cluster
    return RooflineStepTime(
        environment.model, cluster.gpu, cluster.fabric, environment.engine, tp_size
    )


class EntryPoint(Protocol):
    """Where requests enter a deployment."""

    def submit(self, request: Request) -> None:
        """Take `request`, which has just arrived."""
        ...


@dataclass(frozen=True, slots=True)
class Deployment:
    """What a strategy has built.

    Attributes
    ----------
    entry : EntryPoint
        Where requests enter.
    on_end : tuple of callable
        Called with the time (s) when the run ends, to close what is open.
    models : tuple of str
        Models that `Request.model` counts; empty for the environment's one.
    """

    entry: EntryPoint
    on_end: tuple[Callable[[float], None], ...] = ()
    models: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class InstanceShape:
    """What an instance is made of.

    Attributes
    ----------
    strategy : str
        Name of the strategy, for messages.
    tp_size : int
        GPUs of its tensor-parallel group.
    pp_size : int
        Stages of its pipeline, each on such a group.
    scheduler : str
        A key of `simcluster.sched.SCHEDULERS`.
    max_num_seqs, max_num_batched_tokens : int or None
        Limits of a step; None for the engine's.
    instances_per_node : int or None
        Most instances on a node; None for as many as fit.
    num_kv_blocks : int or None
        KV blocks; None for what fits in memory.
    prefix_caching : bool or None
        Whether common prefixes share KV blocks; None for the engine's habit.
    swap_bytes : float
        Host memory per GPU for the KV of preempted requests (bytes); 0 to recompute it.
    """

    strategy: str
    tp_size: int
    pp_size: int = 1
    scheduler: str = "prefill-priority"
    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None
    instances_per_node: int | None = None
    num_kv_blocks: int | None = None
    prefix_caching: bool | None = None
    swap_bytes: float = 0.0

    @property
    def num_gpus(self) -> int:
        """GPUs of an instance."""
        return self.tp_size * self.pp_size

    def key(self, name: str) -> str:
        """The scenario key `name` of this strategy."""
        return f"strategy.{self.strategy}.{name}"


def roofline_stages(environment: Environment, shape: InstanceShape) -> tuple[RooflineStepTime, ...]:
    """Step times of the stages of a pipelined instance of `shape`."""
    cluster, model = environment.cluster, environment.model
    check_pp(model, shape.pp_size, key=shape.key("pp_size"))
    return pipeline_stages(
        model, cluster.gpu, cluster.fabric, environment.engine, shape.tp_size, shape.pp_size
    )


class Machines:
    """Nodes of one GPU type in a run: what is free on them; several models may share them.

    Parameters
    ----------
    config : ClusterConfig
        What they are.
    first_node : int
        Number of the first of them; those of other types come before.
    """

    def __init__(self, config: ClusterConfig, first_node: int = 0) -> None:
        self.config = config
        self.first_node = first_node
        self.free_gpus = [config.gpus_per_node] * config.num_nodes


class Cluster:
    """GPUs on nodes, links between them, and the instances placed so far.

    Parameters
    ----------
    env : Clock
        The run.
    environment : Environment
        Model, machines, engine, targets.
    recorder : Recorder
        Where everything is written down.
    resolution : str
        ``"span"``, ``"step"`` or ``"kernel"``.
    step_time : callable
        Makes the step-time model of an instance.
    seed : int
        Seed of the run, for strategies that draw.
    has_prefixes : bool
        Whether requests say which blocks they have in common; where not, none are looked for.

    Attributes
    ----------
    instances : list of InstanceLike
        In the order they were placed.
    pools : list of str
        Role of each: ``"mixed"``, ``"prefill"`` or ``"decode"``.
    serves : list of tuple of str
        Model and GPU type of each.
    macro_ids : iterator of int
        Numbers for the macro instances of the run.
    network : LinkNetwork
        The KV-transfer links.
    on_finish : callable
        Who hears of finished and rejected requests; set by the run.
    """

    def __init__(
        self,
        env: Clock,
        environment: Environment,
        recorder: Recorder,
        *,
        resolution: str = "span",
        step_time: StepTimeFactory = roofline_step_time,
        seed: int = 0,
        has_prefixes: bool = False,
    ) -> None:
        self.env = env
        self.environment = environment
        self.seed = seed
        self.recorder = recorder
        self.instances: list[InstanceLike] = []
        self.pools: list[str] = []
        self.serves: list[tuple[str, str]] = []
        self.network = LinkNetwork(env, recorder)
        self.on_finish: Callable[[Request], None] = lambda _: None
        self._resolution = resolution
        self._has_prefixes = has_prefixes
        self._step_time = step_time
        self._step_times: dict[int, StepTime] = {}
        self._stages: dict[tuple[int, int], tuple[RooflineStepTime, ...]] = {}
        self._nodes: list[tuple[int, ...]] = []  # of each stage of each instance
        self._num_gpus: list[int] = []  # of each instance
        self._taken_s: list[float] = []  # when its GPUs were taken
        self._freed_s: dict[int, float] = {}  # when they were given back
        self._lane_numbers = itertools.count()  # of all instances
        self.macro_ids = itertools.count()
        self._machines = Machines(environment.cluster)
        self._placed: list[tuple[int, ...]] = []  # nodes of its own instances, from 0
        self._links: dict[str, Link] = {}

    def part(self, environment: Environment, machines: Machines) -> Cluster:
        """Return the view of one model on one GPU type; the run and its instances are shared.

        Parameters
        ----------
        environment : Environment
            The model, and the machines as its cluster.
        machines : Machines
            What is free on them, shared with other views.
        """
        view = copy.copy(self)
        view.environment = environment
        view._machines = machines
        view._placed = []
        view._step_times, view._stages = {}, {}
        view.on_finish = lambda request: self.on_finish(request)
        return view

    # --- placement ----------------------------------------------------------------------------

    def capacity(self, shape: InstanceShape) -> list[int]:
        """Whole instances of `shape` that still fit on each node.

        Raises
        ------
        ConfigError
            If the tensor-parallel group is larger than a node.
        """
        per_node = self.environment.cluster.gpus_per_node
        if shape.tp_size > per_node:
            raise ConfigError(
                shape.key("tp_size"),
                shape.tp_size,
                f"a tensor-parallel group stays inside a node, and a node has {per_node} GPUs",
                f"Use at most {per_node}.",
            )
        most = shape.instances_per_node or per_node
        placed = [0] * len(self._machines.free_gpus)
        for nodes in self._placed:
            placed[nodes[0]] += 1
        return [
            max(0, min(free // shape.num_gpus, most - count))
            for free, count in zip(self._machines.free_gpus, placed, strict=True)
        ]

    def num_that_fit(self, shape: InstanceShape) -> int:
        """Instances of `shape` that still fit; a pipeline larger than a node spans several."""
        if shape.num_gpus <= self.environment.cluster.gpus_per_node:
            return sum(self.capacity(shape))
        self.capacity(shape)  # its checks
        return sum(free // shape.tp_size for free in self._machines.free_gpus) // shape.pp_size

    def place(self, shape: InstanceShape, pool: str, node: int | None = None) -> InstanceLike:
        """Put an instance of `shape` on the first node with room, or on `node`.

        A pipeline that is larger than a node goes stage by stage to the first nodes with room.

        Raises
        ------
        ConfigError
            If the model does not fit its GPUs or no node has room.
        """
        nodes = self._stage_nodes(shape, node)
        if nodes is None:
            cluster = self.environment.cluster
            raise ConfigError(
                shape.key("instances"),
                len(self._placed) + 1,
                f"no node has {shape.num_gpus} free GPUs left: the cluster has {cluster.num_nodes} "
                f"nodes of {cluster.gpus_per_node} and holds {len(self._placed)} instances",
                f"Use at most {len(self._placed)} instances, or add nodes.",
            )
        instance = self._make(shape, pool, nodes)
        for home in nodes:
            self._machines.free_gpus[home] -= shape.tp_size
        self.instances.append(instance)
        self.pools.append(pool)
        self.serves.append((self.environment.model.spec.name, self.environment.cluster.gpu.name))
        self._placed.append(nodes)
        self._nodes.append(tuple(self._machines.first_node + home for home in nodes))
        self._num_gpus.append(shape.num_gpus)
        self._taken_s.append(self.env.now)
        return instance

    def remove(self, instance: InstanceLike) -> None:
        """Give the GPUs of `instance` back; it must have nothing left to do."""
        if instance.has_unfinished:
            raise InvariantError("an instance with unfinished requests cannot be removed")
        number = instance.instance_id
        self._freed_s[number] = self.env.now
        nodes = tuple(node - self._machines.first_node for node in self._nodes[number])
        self._placed.remove(nodes)
        for home in nodes:
            self._machines.free_gpus[home] += self._num_gpus[number] // len(nodes)

    def held_s(self, instance: InstanceLike) -> tuple[float, float]:
        """From when to when the GPUs of `instance` are taken (s); NaN if to the end."""
        number = instance.instance_id
        return self._taken_s[number], self._freed_s.get(number, nan)

    def _stage_nodes(self, shape: InstanceShape, node: int | None) -> tuple[int, ...] | None:
        """Node of each stage of the next instance of `shape`; None if there is no room."""
        room = self.capacity(shape)
        if shape.num_gpus <= self.environment.cluster.gpus_per_node:
            if node is None:
                node = next((n for n, left in enumerate(room) if left), None)
            return None if node is None or not room[node] else (node,) * shape.pp_size
        groups = [
            n
            for n, free in enumerate(self._machines.free_gpus)
            for _ in range(free // shape.tp_size)
        ]
        return tuple(groups[: shape.pp_size]) if len(groups) >= shape.pp_size else None

    def _make(self, shape: InstanceShape, pool: str, nodes: tuple[int, ...]) -> InstanceLike:
        number = len(self.instances)
        num_blocks = self._num_blocks(shape)
        if shape.pp_size == 1:
            step_time = self._step_times.get(shape.tp_size)
            if step_time is None:
                step_time = self._step_time(self.environment, shape.tp_size)
                self._step_times[shape.tp_size] = step_time
            ranks = self._ranks(shape.tp_size, 0) if self._by_kernel else None
            return self._lane(shape, pool, num_blocks, step_time, ranks=ranks)
        stages = self._stages.get((shape.tp_size, shape.pp_size))
        if stages is None:
            stages = roofline_stages(self.environment, shape)
            self._stages[(shape.tp_size, shape.pp_size)] = stages
        cluster, model = self.environment.cluster, self.environment.model
        links = [cluster.fabric if a == b else cluster.network for a, b in pairwise(nodes)]
        groups = None
        if self._by_kernel:
            groups = [self._ranks(shape.tp_size, k * shape.tp_size) for k in range(shape.pp_size)]
        ahead = self._resolution == "span"
        pipeline = PipelineStages(self.env, stages, model, links, groups, ahead=ahead)
        lanes = [
            self._lane(
                shape, pool, num_blocks // shape.pp_size, stages[0], lane=k, pipeline=pipeline
            )
            for k in range(shape.pp_size)
        ]
        for lane in lanes:
            lane.instance_id = number
        return PipelinedInstance(lanes, pipeline.prefill_s)

    @property
    def _by_kernel(self) -> bool:
        return self._resolution == "kernel" or self.recorder.kernels is not None

    def _ranks(self, tp_size: int, first_rank: int) -> RankGroup:
        depth = self.environment.engine.queue_depth
        number = len(self.instances)
        return RankGroup(
            self.env, tp_size, depth, self.recorder.kernels, number, first_rank=first_rank
        )

    def _lane(
        self,
        shape: InstanceShape,
        pool: str,
        num_blocks: int,
        step_time: StepTime,
        *,
        ranks: RankGroup | None = None,
        lane: int = 0,
        pipeline: PipelineStages | None = None,
    ) -> Instance:
        environment, engine = self.environment, self.environment.engine
        prefix_caching = shape.prefix_caching
        if prefix_caching is None:
            prefix_caching = engine.prefix_caching
        pool_type = PrefixPool if prefix_caching and self._has_prefixes else BlockPool
        host = HostMemory.of(environment, shape) if shape.swap_bytes else None
        scheduler = SCHEDULERS[shape.scheduler](
            scheduler_limits(environment, shape),
            pool_type(num_blocks, engine.block_size, engine.watermark),
            prefill_only=pool == "prefill",
            host=None if host is None else BlockPool(host.num_blocks, engine.block_size),
        )
        order = next(self._lane_numbers)
        return Instance(
            self.env,
            len(self.instances),
            scheduler,
            step_time,
            self.recorder,
            resolution=self._resolution,
            ranks=ranks,
            window=environment.model.spec.sliding_window,
            lane=lane,
            order=order,
            pipeline=pipeline,
            copy_s=None if host is None else host.copy_s,
        )

    def _num_blocks(self, shape: InstanceShape) -> int:
        environment = self.environment
        num_blocks = shape.num_kv_blocks
        key = "num_kv_blocks"
        if num_blocks is None:
            key = "pp_size"
            num_blocks = kv_blocks(
                environment.model,
                environment.cluster.gpu,
                environment.engine,
                shape.tp_size,
                shape.pp_size,
                key=shape.key("tp_size"),
            )
        tokens = num_blocks // shape.pp_size * environment.engine.block_size
        if tokens < environment.model.max_model_len:
            batches = f" in each of the {shape.pp_size} batches" if shape.pp_size > 1 else ""
            raise ConfigError(
                shape.key(key),
                shape.num_kv_blocks if key == "num_kv_blocks" else shape.pp_size,
                f"{tokens} tokens{batches} cannot hold one sequence of max_model_len = "
                f"{environment.model.max_model_len}",
                "Raise it, or lower engine.max_model_len."
                if key == "num_kv_blocks"
                else f"Set engine.max_model_len to at most {tokens}, or use fewer stages.",
            )
        return num_blocks

    @property
    def num_gpus(self) -> int:
        """GPUs of the placed instances, the most at a time."""
        changes = [(t, n) for t, n in zip(self._taken_s, self._num_gpus, strict=True)]
        changes += [(t, -self._num_gpus[number]) for number, t in self._freed_s.items()]
        return max(accumulate(n for _, n in sorted(changes)), default=0)

    def node_of(self, instance: InstanceLike) -> int:
        """Node of `instance`; of its first stage if it spans several."""
        return self._nodes[instance.instance_id][0]

    def num_gpus_of(self, instance: InstanceLike) -> int:
        """GPUs of `instance`."""
        return self._num_gpus[instance.instance_id]

    def tp_size_of(self, instance: InstanceLike) -> int:
        """GPUs of a tensor-parallel group of `instance`."""
        return self._num_gpus[instance.instance_id] // len(self._nodes[instance.instance_id])

    # --- links --------------------------------------------------------------------------------

    def fabric_path(self, source: InstanceLike, destination: InstanceLike) -> Path:
        """From the GPUs of one instance to those of another on the same node."""
        fabric = self.environment.cluster.fabric
        return (
            self._link(
                f"instance-{source.instance_id} fabric out",
                self.num_gpus_of(source) * fabric.bandwidth * fabric.efficiency,
                fabric.latency_s,
            ),
            self._link(
                f"instance-{destination.instance_id} fabric in",
                self.num_gpus_of(destination) * fabric.bandwidth * fabric.efficiency,
                0.0,
            ),
        )

    def to_host_path(self, source: InstanceLike, node: int) -> Path:
        """From the GPUs of an instance to the host memory of `node`, over the NICs if elsewhere."""
        pcie = self.environment.cluster.pcie
        name = f"instance-{source.instance_id} pcie out"
        bandwidth = self.num_gpus_of(source) * pcie.bandwidth * pcie.efficiency
        path: Path = (self._link(name, bandwidth, pcie.latency_s),)
        home = self.node_of(source)
        return path if home == node else (*path, *self._network_path(home, node))

    def from_host_path(self, destination: InstanceLike) -> Path:
        """From the memory of its own host to the GPUs of an instance."""
        pcie = self.environment.cluster.pcie
        name = f"instance-{destination.instance_id} pcie in"
        bandwidth = self.num_gpus_of(destination) * pcie.bandwidth * pcie.efficiency
        return (self._link(name, bandwidth, pcie.latency_s),)

    def _network_path(self, source_node: int, destination_node: int) -> Path:
        cluster = self.environment.cluster
        bandwidth = cluster.num_nics * cluster.network.bandwidth * cluster.network.efficiency
        return (
            self._link(f"node-{source_node} nic out", bandwidth, cluster.network.latency_s),
            self._link(f"node-{destination_node} nic in", bandwidth, 0.0),
        )

    def _link(self, name: str, bandwidth: float, latency_s: float) -> Link:
        link = self._links.get(name)
        if link is None:
            link = self._links[name] = Link(name, bandwidth, latency_s)
        return link


@dataclass(frozen=True, slots=True)
class HostMemory:
    """Where an instance, or a lane of a pipelined one, keeps the KV of preempted requests.

    Attributes
    ----------
    num_blocks : int
        Blocks that find room, >= 1.
    block_s : float
        Time to copy one over the PCIe links of all GPUs of the instance at once (s).
    latency_s : float
        Latency of a copy (s).
    """

    num_blocks: int
    block_s: float
    latency_s: float

    @classmethod
    def of(cls, environment: Environment, shape: InstanceShape) -> HostMemory:
        """Return the host memory of an instance of `shape`; each lane of it has its share.

        Raises
        ------
        ConfigError
            If it holds no block.
        """
        model, pcie = environment.model, environment.cluster.pcie
        per_token = max(
            kv_bytes_per_token_per_gpu(model, shape.tp_size, shape.pp_size, stage)
            for stage in range(shape.pp_size)
        )
        block_bytes = per_token * environment.engine.block_size
        num_blocks = int(shape.swap_bytes / block_bytes) // shape.pp_size
        if not num_blocks:
            raise ConfigError(
                shape.key("swap_bytes"),
                shape.swap_bytes,
                f"a GPU's share of a KV block is {math.ceil(block_bytes)} bytes, and "
                f"{shape.pp_size} must find room",
                "Raise it.",
            )
        return cls(num_blocks, block_bytes / (pcie.bandwidth * pcie.efficiency), pcie.latency_s)

    def copy_s(self, num_blocks: int) -> float:
        """Time to copy `num_blocks` blocks one way (s), on the grid."""
        return on_grid(self.latency_s + num_blocks * self.block_s)


def scheduler_limits(environment: Environment, shape: InstanceShape) -> SchedulerConfig:
    """Return the limits of a step: the strategy's, else the engine's defaults.

    Raises
    ------
    ConfigError
        If the longest prompt does not fit into a prefill step, or a full decode batch not into the
        token budget of a chunked one.
    """
    engine, max_model_len = environment.engine, environment.model.max_model_len
    max_num_seqs = shape.max_num_seqs or engine.max_num_seqs
    tokens = shape.max_num_batched_tokens
    if tokens is None:
        tokens = engine.max_num_batched_tokens or max(max_model_len, 2048)
    if shape.scheduler == "chunked":
        if tokens < max_num_seqs:
            raise ConfigError(
                shape.key("chunk_size"),
                tokens,
                f"a full decode batch of max_num_seqs = {max_num_seqs} would not fit in one step",
                "Raise it, or lower max_num_seqs.",
            )
    elif tokens < max_model_len:
        raise ConfigError(
            shape.key("max_num_batched_tokens"),
            tokens,
            f"a prompt of max_model_len = {max_model_len} would not fit in one prefill step",
            'Raise it, lower engine.max_model_len, or use scheduler = "chunked".',
        )
    return SchedulerConfig(max_num_seqs=max_num_seqs, max_num_batched_tokens=tokens)
