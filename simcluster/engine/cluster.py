"""The machines of a run, and what a strategy builds on them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import simpy

from simcluster.config import Environment, SchedulerConfig
from simcluster.engine.dispatcher import RankGroup
from simcluster.engine.instance import Instance
from simcluster.engine.link import Link, LinkNetwork, Path
from simcluster.engine.recorder import Recorder
from simcluster.errors import ConfigError
from simcluster.kvcache import BlockPool
from simcluster.request import Request
from simcluster.roofline import RooflineStepTime, StepTime
from simcluster.roofline.memory import kv_blocks
from simcluster.sched import SCHEDULERS

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
    """

    entry: EntryPoint
    on_end: tuple[Callable[[float], None], ...] = ()


@dataclass(frozen=True, slots=True)
class InstanceShape:
    """What an instance is made of.

    Attributes
    ----------
    strategy : str
        Name of the strategy, for messages.
    tp_size : int
        GPUs of its tensor-parallel group.
    scheduler : str
        A key of `simcluster.sched.SCHEDULERS`.
    max_num_seqs, max_num_batched_tokens : int or None
        Limits of a step; None for the engine's.
    instances_per_node : int or None
        Most instances on a node; None for as many as fit.
    num_kv_blocks : int or None
        KV blocks; None for what fits in memory.
    """

    strategy: str
    tp_size: int
    scheduler: str = "prefill-priority"
    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None
    instances_per_node: int | None = None
    num_kv_blocks: int | None = None

    def key(self, name: str) -> str:
        """The scenario key `name` of this strategy."""
        return f"strategy.{self.strategy}.{name}"


class Cluster:
    """GPUs on nodes, links between them, and the instances placed so far.

    Parameters
    ----------
    env : simpy.Environment
        The run.
    environment : Environment
        Model, machines, engine, targets.
    recorder : Recorder
        Where everything is written down.
    resolution : str
        ``"span"``, ``"step"`` or ``"kernel"``.
    step_time : callable
        Makes the step-time model of an instance.

    Attributes
    ----------
    instances : list of Instance
        In the order they were placed.
    pools : list of str
        Role of each: ``"mixed"``, ``"prefill"`` or ``"decode"``.
    network : LinkNetwork
        The KV-transfer links.
    on_finish : callable
        Who hears of finished and rejected requests; set by the run.
    """

    def __init__(
        self,
        env: simpy.Environment,
        environment: Environment,
        recorder: Recorder,
        *,
        resolution: str = "span",
        step_time: StepTimeFactory = roofline_step_time,
    ) -> None:
        self.env = env
        self.environment = environment
        self.recorder = recorder
        self.instances: list[Instance] = []
        self.pools: list[str] = []
        self.network = LinkNetwork(env, recorder)
        self.on_finish: Callable[[Request], None] = lambda _: None
        self._resolution = resolution
        self._step_time = step_time
        self._step_times: dict[int, StepTime] = {}
        self._nodes: list[int] = []  # of each instance
        self._tp_sizes: list[int] = []
        config = environment.cluster
        self._free_gpus = [config.gpus_per_node] * config.num_nodes
        self._links: dict[str, Link] = {}

    # --- placement ----------------------------------------------------------------------------

    def capacity(self, shape: InstanceShape) -> list[int]:
        """Instances of `shape` that still fit on each node.

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
        placed = [0] * len(self._free_gpus)
        for node in self._nodes:
            placed[node] += 1
        return [
            max(0, min(free // shape.tp_size, most - count))
            for free, count in zip(self._free_gpus, placed, strict=True)
        ]

    def place(self, shape: InstanceShape, pool: str, node: int | None = None) -> Instance:
        """Put an instance of `shape` on the first node with room, or on `node`.

        Raises
        ------
        ConfigError
            If the model does not fit its GPUs or no node has room.
        """
        room = self.capacity(shape)
        if node is None:
            node = next((n for n, left in enumerate(room) if left), None)
        if node is None or not room[node]:
            cluster = self.environment.cluster
            raise ConfigError(
                shape.key("instances"),
                len(self.instances) + 1,
                f"no node has {shape.tp_size} free GPUs left: the cluster has {cluster.num_nodes} "
                f"nodes of {cluster.gpus_per_node} and holds {len(self.instances)} instances",
                f"Use at most {len(self.instances)} instances, or add nodes.",
            )
        instance = self._make(shape, pool)
        self._free_gpus[node] -= shape.tp_size
        self._nodes.append(node)
        return instance

    def _make(self, shape: InstanceShape, pool: str) -> Instance:
        environment, engine = self.environment, self.environment.engine
        num_blocks = self._num_blocks(shape)
        step_time = self._step_times.get(shape.tp_size)
        if step_time is None:
            step_time = self._step_time(environment, shape.tp_size)
            self._step_times[shape.tp_size] = step_time
        blocks = BlockPool(num_blocks, engine.block_size, engine.watermark)
        scheduler = SCHEDULERS[shape.scheduler](
            scheduler_limits(environment, shape), blocks, prefill_only=pool == "prefill"
        )
        ranks = None
        if self._resolution == "kernel" or self.recorder.kernels is not None:
            ranks = RankGroup(
                self.env,
                shape.tp_size,
                engine.queue_depth,
                self.recorder.kernels,
                len(self.instances),
            )
        instance = Instance(
            self.env,
            len(self.instances),
            scheduler,
            step_time,
            self.recorder,
            resolution=self._resolution,
            ranks=ranks,
            window=environment.model.spec.sliding_window,
        )
        self.instances.append(instance)
        self.pools.append(pool)
        self._tp_sizes.append(shape.tp_size)
        return instance

    def _num_blocks(self, shape: InstanceShape) -> int:
        environment = self.environment
        if shape.num_kv_blocks is None:
            return kv_blocks(
                environment.model,
                environment.cluster.gpu,
                environment.engine,
                shape.tp_size,
                key=shape.key("tp_size"),
            )
        tokens = shape.num_kv_blocks * environment.engine.block_size
        if tokens < environment.model.max_model_len:
            raise ConfigError(
                shape.key("num_kv_blocks"),
                shape.num_kv_blocks,
                f"{tokens} tokens cannot hold one sequence of max_model_len = "
                f"{environment.model.max_model_len}",
                "Raise it, or lower engine.max_model_len.",
            )
        return shape.num_kv_blocks

    @property
    def num_gpus(self) -> int:
        """GPUs of the placed instances."""
        return sum(self._tp_sizes)

    def node_of(self, instance: Instance) -> int:
        """Node of `instance`."""
        return self._nodes[instance.instance_id]

    def tp_size_of(self, instance: Instance) -> int:
        """GPUs of `instance`."""
        return self._tp_sizes[instance.instance_id]

    # --- links --------------------------------------------------------------------------------

    def fabric_path(self, source: Instance, destination: Instance) -> Path:
        """From the GPUs of one instance to those of another on the same node."""
        fabric = self.environment.cluster.fabric
        return (
            self._link(
                f"instance-{source.instance_id} fabric out",
                self.tp_size_of(source) * fabric.bandwidth * fabric.efficiency,
                fabric.latency_s,
            ),
            self._link(
                f"instance-{destination.instance_id} fabric in",
                self.tp_size_of(destination) * fabric.bandwidth * fabric.efficiency,
                0.0,
            ),
        )

    def to_host_path(self, source: Instance, node: int) -> Path:
        """From the GPUs of an instance to the host memory of `node`, over the NICs if elsewhere."""
        pcie = self.environment.cluster.pcie
        name = f"instance-{source.instance_id} pcie out"
        bandwidth = self.tp_size_of(source) * pcie.bandwidth * pcie.efficiency
        path: Path = (self._link(name, bandwidth, pcie.latency_s),)
        home = self.node_of(source)
        return path if home == node else (*path, *self._network_path(home, node))

    def from_host_path(self, destination: Instance) -> Path:
        """From the memory of its own host to the GPUs of an instance."""
        pcie = self.environment.cluster.pcie
        name = f"instance-{destination.instance_id} pcie in"
        bandwidth = self.tp_size_of(destination) * pcie.bandwidth * pcie.efficiency
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
