"""The machines of a run, and what a strategy builds on them."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from math import nan
from typing import Protocol

from simcluster.config import ClusterConfig, Environment, SchedulerConfig
from simcluster.engine.clock import Clock
from simcluster.engine.collectives import SHARES, SharedWires
from simcluster.engine.dispatcher import RankGroup
from simcluster.engine.instance import Instance, InstanceLike
from simcluster.engine.link import LinkNetwork
from simcluster.engine.pipeline import PipelineStages
from simcluster.engine.pipelined import PipelinedInstance
from simcluster.engine.recorder import Recorder
from simcluster.engine.topology import GpuGroup, Topology
from simcluster.errors import ConfigError, InvariantError
from simcluster.kvcache import BlockPool, PrefixPool
from simcluster.request import Request
from simcluster.roofline import RooflineStepTime, StepTime, check_pp, pipeline_stages
from simcluster.roofline.collectives import all_reduce_terms
from simcluster.roofline.memory import kv_blocks, kv_bytes_per_token_per_gpu
from simcluster.roofline.operators import ACTIVATION_BYTES
from simcluster.sched import QUEUES, SCHEDULERS
from simcluster.specs import LinkSpec
from simcluster.units import on_grid

StepTimeFactory = Callable[[Environment, int], StepTime]
"""From the environment and a tensor-parallel degree to the step times of such an instance."""


def roofline_step_time(environment: Environment, tp_size: int, wire_share: float = 1.0) -> StepTime:
    """Step times of the roofline model on the cluster's GPU and fabric.

    `wire_share` is the share of the fabric that the collectives get.
    """
    cluster = environment.cluster
    fabric = group_fabric(cluster, tp_size)
    if wire_share < 1.0:
        fabric = replace(fabric, bandwidth=fabric.bandwidth * wire_share)
    return RooflineStepTime(environment.model, cluster.gpu, fabric, environment.engine, tp_size)


def group_fabric(cluster: ClusterConfig, tp_size: int) -> LinkSpec:
    """Link over which a tensor-parallel group of `tp_size` GPUs talks.

    The fabric; PCIe if the group is larger than the domain that the fabric joins. A group larger
    than a node passes the network: its rings go through all NICs of a node side by side, each no
    faster than the fabric, and every round of an all-reduce waits for the network's latency once
    per node in both of its halves.
    """
    inside = cluster.fabric
    if cluster.gpus_per_domain is not None and tp_size > cluster.gpus_per_domain:
        inside = cluster.pcie
    if tp_size <= cluster.gpus_per_node or cluster.network is None:
        return inside
    network = cluster.network
    latency_s, efficiency = all_reduce_terms(inside, cluster.gpus_per_node)
    num_nodes = -(-tp_size // cluster.gpus_per_node)
    bandwidth = min(
        inside.bandwidth * efficiency, cluster.num_nics * network.bandwidth * network.efficiency
    )
    return replace(
        network,
        bandwidth=bandwidth,
        efficiency=1.0,
        allreduce_efficiency=1.0,
        allreduce_latency_s=latency_s + 2 * (num_nodes - 1) * network.latency_s,
        allreduce_terms=(),
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
    queue : str
        A key of `simcluster.sched.QUEUES`: the order of waiting requests.
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
    tp_across_nodes : bool
        A tensor-parallel group may be larger than a node; it takes whole nodes then.
    """

    strategy: str
    tp_size: int
    pp_size: int = 1
    scheduler: str = "prefill-priority"
    queue: str = "first-come"
    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None
    instances_per_node: int | None = None
    num_kv_blocks: int | None = None
    prefix_caching: bool | None = None
    swap_bytes: float = 0.0
    tp_across_nodes: bool = False

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
    fabric = group_fabric(cluster, shape.tp_size)
    return pipeline_stages(
        model, cluster.gpu, fabric, environment.engine, shape.tp_size, shape.pp_size
    )


class Machines:
    """Nodes of one GPU type in a run: what is free on them; several models may share them.

    Parameters
    ----------
    config : ClusterConfig
        What they are.
    first_node : int
        Number of the first of them; those of other types come before.

    Attributes
    ----------
    topology : Topology
        How their GPUs, hosts and nodes are linked.
    free_gpus : list of list of int
        Of each node, in order.
    num_removed : int
        Instances that have given their GPUs back.
    """

    def __init__(self, config: ClusterConfig, first_node: int = 0) -> None:
        self.config = config
        self.first_node = first_node
        self.topology = Topology(config, first_node)
        self.free_gpus = [list(range(config.gpus_per_node)) for _ in range(config.num_nodes)]
        self.num_removed = 0


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
    moves_kv : bool
        KV moves between instances that are placed from now on, and meets their collectives where
        these use the same wires. Set by the strategy.
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
        self.moves_kv = False
        self.on_finish: Callable[[Request], None] = lambda _: None
        self._resolution = resolution
        self._has_prefixes = has_prefixes
        self._step_time = step_time
        self._step_times: dict[int, StepTime] = {}
        self._step_times_at: dict[tuple[int, int], StepTime] = {}  # by group and share of wires
        self._stages: dict[tuple[int, int], tuple[RooflineStepTime, ...]] = {}
        self._groups: list[tuple[GpuGroup, ...]] = []  # of each stage of each instance
        self._first_nodes: list[int] = []  # of the machines of each instance
        self._num_gpus: list[int] = []  # of each instance
        self._tp_sizes: list[int] = []
        self._taken_s: list[float] = []  # when its GPUs were taken
        self._freed_s: dict[int, float] = {}  # when they were given back
        self._lane_numbers = itertools.count()  # of all instances
        self.macro_ids = itertools.count()
        self._machines = Machines(environment.cluster)
        self._forget_placed()

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
        view._forget_placed()
        view._step_times, view._step_times_at, view._stages = {}, {}, {}
        view.on_finish = lambda request: self.on_finish(request)
        return view

    def _forget_placed(self) -> None:
        self._num_placed = 0
        self._num_homes = [0] * self._machines.config.num_nodes  # instances that begin there
        self._ends: dict[InstanceShape, list[int]] = {}  # first and last node that may have room
        self._ends_removed = self._machines.num_removed

    @property
    def topology(self) -> Topology:
        """How the GPUs, hosts and nodes are linked."""
        return self._machines.topology

    # --- placement ----------------------------------------------------------------------------

    def room(self, shape: InstanceShape, node: int) -> int:
        """Whole instances of `shape` that still fit on `node`."""
        most = shape.instances_per_node or self.environment.cluster.gpus_per_node
        return max(
            0, min(self._groups_left(shape, node) // shape.pp_size, most - self._num_homes[node])
        )

    def _groups_left(self, shape: InstanceShape, node: int) -> int:
        """Tensor-parallel groups of `shape` that the free GPUs of `node` hold."""
        return len(self._machines.free_gpus[node]) // shape.tp_size

    def num_that_fit(self, shape: InstanceShape) -> int:
        """Instances of `shape` that still fit; a pipeline larger than a node spans several.

        Raises
        ------
        ConfigError
            If the tensor-parallel group is larger than a node and must not be.
        """
        per_node = self.environment.cluster.gpus_per_node
        nodes = range(len(self._machines.free_gpus))
        if shape.tp_size > per_node:
            self._check_across_nodes(shape)
            free = sum(len(self._machines.free_gpus[node]) == per_node for node in nodes)
            return free // (-(-shape.tp_size // per_node) * shape.pp_size)
        if shape.num_gpus <= per_node:
            return sum(self.room(shape, node) for node in nodes)
        return sum(self._groups_left(shape, node) for node in nodes) // shape.pp_size

    def _check_across_nodes(self, shape: InstanceShape) -> None:
        cluster = self.environment.cluster
        per_node = cluster.gpus_per_node
        if not shape.tp_across_nodes:
            raise ConfigError(
                shape.key("tp_size"),
                shape.tp_size,
                f"a tensor-parallel group stays inside a node, and a node has {per_node} GPUs",
                f"Use at most {per_node}, or set tp_across_nodes = true.",
            )
        if shape.tp_size % per_node:
            raise ConfigError(
                shape.key("tp_size"),
                shape.tp_size,
                f"a group that crosses nodes takes whole nodes, and a node has {per_node} GPUs",
                f"Use a multiple of {per_node}.",
            )
        if cluster.network is None:
            raise ConfigError(
                shape.key("tp_size"),
                shape.tp_size,
                "a group that crosses nodes needs a network, and there is none",
                f"Use at most {per_node}, or name cluster.network.",
            )

    def place(
        self, shape: InstanceShape, pool: str, node: int | None = None, *, last: bool = False
    ) -> InstanceLike:
        """Put an instance of `shape` on the first node with room, or on `node`.

        A tensor-parallel group stays inside a node, on neighbouring GPUs where it can. A pipeline
        that is larger than a node goes stage by stage to the first nodes with room, a group larger
        than a node to the first free nodes.

        Parameters
        ----------
        shape : InstanceShape
            What to place.
        pool : str
            Its role.
        node : int, optional
            Where.
        last : bool
            On the last node with room instead of the first.

        Raises
        ------
        ConfigError
            If the model does not fit its GPUs or no node has room.
        """
        groups = self._place_groups(shape, node, last)
        if groups is None:
            cluster = self.environment.cluster
            raise ConfigError(
                shape.key("instances"),
                self._num_placed + 1,
                f"no node has {shape.num_gpus} free GPUs left: the cluster has {cluster.num_nodes} "
                f"nodes of {cluster.gpus_per_node} and holds {self._num_placed} instances",
                f"Use at most {self._num_placed} instances, or add nodes.",
            )
        instance = self._make(shape, pool, groups)
        for group in groups:
            free = self._machines.free_gpus[group.node]
            taken = set(group.gpus)
            self._machines.free_gpus[group.node] = [gpu for gpu in free if gpu not in taken]
            self.topology.add(group)
        self._num_homes[groups[0].node] += 1
        self.instances.append(instance)
        self.pools.append(pool)
        self.serves.append((self.environment.model.spec.name, self.environment.cluster.gpu.name))
        self._num_placed += 1
        self._groups.append(groups)
        self._first_nodes.append(self._machines.first_node)
        self._num_gpus.append(shape.num_gpus)
        self._tp_sizes.append(shape.tp_size)
        self._taken_s.append(self.env.now)
        if self.moves_kv and isinstance(instance, Instance):
            self._share_wires(instance, groups[0])
        return instance

    def _share_wires(self, instance: Instance, group: GpuGroup) -> None:
        """Let the collectives of `instance` meet the KV transfers of its GPUs."""
        wires = self.topology.wires(group)
        step_time = instance.step_time
        if not wires or not isinstance(step_time, RooflineStepTime):
            return
        environment, tp_size = self.environment, len(group.gpus)

        def step_time_at(share: int) -> StepTime:
            if share == SHARES:
                return step_time
            known = self._step_times_at.get((tp_size, share))
            if known is None:
                known = roofline_step_time(environment, tp_size, share / SHARES)
                self._step_times_at[(tp_size, share)] = known
            return known

        spec = environment.model.spec
        # Two all-reduces a layer, of which every rank sends 2 (t - 1) / t (see `all_reduce_s`).
        message = spec.hidden_size * ACTIVATION_BYTES
        sent = 2 * spec.num_layers * 2 * (tp_size - 1) / tp_size * message
        instance.wires = SharedWires(
            self.env, self.network, wires, tp_size * sent, step_time_at, instance.cut_later
        )

    def remove(self, instance: InstanceLike) -> None:
        """Give the GPUs of `instance` back; it must have nothing left to do."""
        if instance.has_unfinished:
            raise InvariantError("an instance with unfinished requests cannot be removed")
        number = instance.instance_id
        self._freed_s[number] = self.env.now
        groups = self._groups[number]
        for group in groups:
            self._machines.free_gpus[group.node].extend(group.gpus)
            self._machines.free_gpus[group.node].sort()
        self._machines.num_removed += 1
        self._num_homes[groups[0].node] -= 1
        self._num_placed -= 1

    def held_s(self, instance: InstanceLike) -> tuple[float, float]:
        """From when to when the GPUs of `instance` are taken (s); NaN if to the end."""
        number = instance.instance_id
        return self._taken_s[number], self._freed_s.get(number, nan)

    def _place_groups(
        self, shape: InstanceShape, node: int | None, last: bool
    ) -> tuple[GpuGroup, ...] | None:
        """GPUs of each stage of the next instance of `shape`; None if there is no room.

        A group that crosses nodes is written down node by node, like stages.
        """
        per_node = self.environment.cluster.gpus_per_node
        if shape.tp_size > per_node:
            self._check_across_nodes(shape)
            whole = [n for n, free in enumerate(self._machines.free_gpus) if len(free) == per_node]
            needed = shape.num_gpus // per_node
            if len(whole) < needed:
                return None
            return tuple(self._group(n, per_node, 0) for n in whole[:needed])
        if shape.num_gpus <= per_node:
            home = self._node_with_room(shape, last) if node is None else node
            if home is None or not self.room(shape, home):
                return None
            return tuple(self._group(home, shape.tp_size, k) for k in range(shape.pp_size))
        homes = [
            (n, k)
            for n in range(len(self._machines.free_gpus))
            for k in range(self._groups_left(shape, n))
        ][: shape.pp_size]
        if len(homes) < shape.pp_size:
            return None
        return tuple(self._group(n, shape.tp_size, k) for n, k in homes)

    def _node_with_room(self, shape: InstanceShape, last: bool) -> int | None:
        """First node with room for `shape`, or last.

        Room only shrinks while no instance is removed, so that no node is asked twice.
        """
        machines = self._machines
        if self._ends_removed != machines.num_removed:
            self._ends_removed = machines.num_removed
            self._ends.clear()
        ends = self._ends.setdefault(shape, [0, len(machines.free_gpus) - 1])
        while ends[0] <= ends[1]:
            node = ends[last]
            if self.room(shape, node):
                return node
            ends[last] += -1 if last else 1
        return None

    def _group(self, node: int, num_gpus: int, skipped: int) -> GpuGroup:
        """Free GPUs of `node` for a group, leaving out those of `skipped` such groups."""
        free = self._machines.free_gpus[node]
        known = set(free)
        # Neighbours first: they share a switch, a domain, a NIC.
        runs = [
            tuple(range(first, first + num_gpus))
            for first in range(0, self.environment.cluster.gpus_per_node, num_gpus)
            if all(gpu in known for gpu in range(first, first + num_gpus))
        ]
        owner = f"instance-{len(self.instances)}"
        if len(runs) > skipped:
            return GpuGroup(owner, node, runs[skipped])
        taken = {gpu for run in runs for gpu in run}
        rest = [gpu for gpu in free if gpu not in taken]
        first = (skipped - len(runs)) * num_gpus
        return GpuGroup(owner, node, tuple(rest[first : first + num_gpus]))

    def _make(self, shape: InstanceShape, pool: str, groups: tuple[GpuGroup, ...]) -> InstanceLike:
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
        model = self.environment.model
        links = [
            self._between_stages(shape, a.node, b.node)
            for a, b in pairwise(groups[:: len(groups) // shape.pp_size])
        ]
        ranks_of = None
        if self._by_kernel:
            ranks_of = [self._ranks(shape.tp_size, k * shape.tp_size) for k in range(shape.pp_size)]
        ahead = self._resolution == "span"
        pipeline = PipelineStages(self.env, stages, model, links, ranks_of, ahead=ahead)
        lanes = [
            self._lane(
                shape, pool, num_blocks // shape.pp_size, stages[0], lane=k, pipeline=pipeline
            )
            for k in range(shape.pp_size)
        ]
        for lane in lanes:
            lane.instance_id = number
        return PipelinedInstance(lanes, pipeline.prefill_s)

    def _between_stages(self, shape: InstanceShape, source: int, destination: int) -> LinkSpec:
        """Link that hands activations from a stage on node `source` to one on `destination`."""
        cluster = self.environment.cluster
        if source == destination:
            return cluster.fabric
        if cluster.network is None:
            raise ConfigError(
                shape.key("pp_size"),
                shape.pp_size,
                "the pipeline is larger than a node, and there is no network between nodes",
                "Use fewer GPUs per instance, or name cluster.network.",
            )
        return cluster.network

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
            queue=QUEUES[shape.queue](),
            sliding_window=environment.model.spec.sliding_window,
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
            sliding_window=environment.model.spec.sliding_window,
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
        number = instance.instance_id
        return self._first_nodes[number] + self._groups[number][0].node

    def num_gpus_of(self, instance: InstanceLike) -> int:
        """GPUs of `instance`."""
        return self._num_gpus[instance.instance_id]

    def tp_size_of(self, instance: InstanceLike) -> int:
        """GPUs of a tensor-parallel group of `instance`."""
        return self._tp_sizes[instance.instance_id]

    def groups_of(self, instance: InstanceLike) -> tuple[GpuGroup, ...]:
        """GPUs of `instance`, by stage; a group that crosses nodes by node."""
        return self._groups[instance.instance_id]

    def gpus_on(self, node: int, choice: int) -> GpuGroup:
        """GPUs of one of the instances on `node`, the same for the same `choice`; else all."""
        ours = self._machines.first_node
        here = [
            group
            for groups, first_node in zip(self._groups, self._first_nodes, strict=True)
            for group in groups
            if group.node == node and first_node == ours
        ]
        if here:
            return here[choice % len(here)]
        per_node = self.environment.cluster.gpus_per_node
        return GpuGroup(f"node-{node}", node, tuple(range(per_node)))

    def gpus_of(self, instance: InstanceLike) -> GpuGroup:
        """GPUs of `instance` on the node of its first, where its KV sets out and arrives.

        What a pipeline or a group has on other nodes is not counted on their links.
        """
        groups = self._groups[instance.instance_id]
        first = groups[0]
        gpus = tuple(gpu for group in groups if group.node == first.node for gpu in group.gpus)
        return GpuGroup(first.owner, first.node, gpus)


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
    scheduler = SCHEDULERS[shape.scheduler]
    if scheduler.splits_prompts:
        if tokens < max_num_seqs:
            raise ConfigError(
                shape.key(scheduler.limit_key),
                tokens,
                f"a full decode batch of max_num_seqs = {max_num_seqs} would not fit in one step",
                "Raise it, or lower max_num_seqs.",
            )
    elif tokens < max_model_len:
        raise ConfigError(
            shape.key(scheduler.limit_key),
            tokens,
            f"a prompt of max_model_len = {max_model_len} would not fit in one prefill step",
            'Raise it, lower engine.max_model_len, or use scheduler = "chunked".',
        )
    return SchedulerConfig(max_num_seqs=max_num_seqs, max_num_batched_tokens=tokens)
