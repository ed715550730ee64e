"""The machines of a run, and the instances that a strategy places on them."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate
from math import nan
from typing import NamedTuple, Protocol

from simcluster.config import Environment
from simcluster.engine.clock import Clock
from simcluster.engine.instance import Instance, InstanceLike
from simcluster.engine.instance.factory import InstanceFactory
from simcluster.engine.links.link import LinkNetwork
from simcluster.engine.links.topology import Topology
from simcluster.engine.placement import GpuGroup, Machines, Placement
from simcluster.engine.recorder import Recorder
from simcluster.engine.shape import InstanceShape
from simcluster.errors import ConfigError, InvariantError
from simcluster.request import Request
from simcluster.roofline.layout import Layout
from simcluster.roofline.sources import StepTimeFactory, source_of


class EntryPoint(Protocol):
    """Where requests enter a deployment."""

    def submit(self, request: Request) -> None:
        """Take `request`, which has just arrived."""


@dataclass(frozen=True, slots=True)
class Deployment:
    """A deployment that a strategy has built."""

    entry: EntryPoint
    """Where requests enter."""
    on_end: tuple[Callable[[float], None], ...] = ()
    """Called with the time (s) when the run ends, to close what is open."""
    models: tuple[str, ...] = ()
    """Models that `Request.model` counts; empty for the environment's one."""


@dataclass(slots=True)
class Placed:
    """An instance and where it stands."""

    instance: InstanceLike
    """The instance."""
    role: str
    """``"mixed"``, ``"prefill"`` or ``"decode"``."""
    model: str
    gpu: str
    """Names of its model and GPU type."""
    groups: tuple[GpuGroup, ...]
    """Its GPUs by stage; a group that crosses nodes node by node."""
    first_node: int
    """Number of the first node of its GPU type."""
    num_gpus: int
    layout: Layout
    """All its GPUs, and how they are laid out, the pipeline apart."""
    taken_s: float
    freed_s: float = nan
    """When its GPUs were taken and given back (s); NaN if they never were."""

    @property
    def tp_size(self) -> int:
        """GPUs of a tensor-parallel group."""
        return self.layout.tp_size

    @property
    def pp_size(self) -> int:
        """Stages of its pipeline."""
        return self.num_gpus // self.layout.num_gpus

    @property
    def node(self) -> int:
        """Its node; of its first stage if it spans several."""
        return self.first_node + self.groups[0].node

    @property
    def home(self) -> GpuGroup:
        """Its GPUs on the node of its first, where its KV sets out and arrives.

        What a pipeline or a group has on other nodes is not counted on their links.
        """
        first = self.groups[0]
        gpus = tuple(gpu for group in self.groups if group.node == first.node for gpu in group.gpus)
        return GpuGroup(first.owner, first.node, gpus)


class ScaledGroup(NamedTuple):
    """Instances that come and go with the load."""

    role: str
    """``"mixed"``, ``"prefill"`` or ``"decode"``."""
    first: int
    most: int
    """Instances at the start, and the most in service or starting up."""
    ramp_s: float
    """Shortest time from the start of a run until the most could serve (s); 0 if they do at
    once."""


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
    step_time : callable, optional
        Makes the step-time model of an instance; default: the source that `environment` names.
    seed : int
        Seed of the run, for strategies that draw.
    has_prefixes : bool
        Whether requests say which blocks they have in common; where not, none are looked for.

    Attributes
    ----------
    placed : list of Placed
        Every instance of the run, also those removed, by its number.
    scaled : list of ScaledGroup
        What the autoscalers of the run may do.
    macro_ids : iterator of int
        Numbers for the macro instances of the run.
    network : LinkNetwork
        The KV-transfer links.
    topology : Topology
        How the GPUs, hosts and nodes are linked.
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
        step_time: StepTimeFactory | None = None,
        seed: int = 0,
        has_prefixes: bool = False,
    ) -> None:
        self.env = env
        self.environment = environment
        self.seed = seed
        self.recorder = recorder
        self.placed: list[Placed] = []
        self.scaled: list[ScaledGroup] = []
        self.network = LinkNetwork(env, recorder)
        self.moves_kv = False
        self.on_finish: Callable[[Request], None] = lambda _: None
        self.macro_ids = itertools.count()
        self._factory = InstanceFactory(
            env,
            environment,
            recorder,
            resolution=resolution,
            step_times=source_of(environment, step_time),
            has_prefixes=has_prefixes,
            lane_numbers=itertools.count(),
        )
        self._placement = Placement(Machines(environment.cluster))
        self.topology = Topology(environment.cluster)

    def part(self, environment: Environment, machines: Machines, topology: Topology) -> Cluster:
        """Return the view of one model on one GPU type; the run and its instances are shared.

        Parameters
        ----------
        environment : Environment
            The model, and the machines as its cluster.
        machines, topology : Machines, Topology
            What is free on them and how they are linked, shared with other views.
        """
        view = Cluster(self.env, environment, self.recorder, seed=self.seed)
        view.placed, view.network, view.macro_ids = self.placed, self.network, self.macro_ids
        view.scaled = self.scaled
        view.on_finish = lambda request: self.on_finish(request)
        view.topology = topology
        view._factory = self._factory.of(environment)
        view._placement = Placement(machines)
        return view

    @property
    def instances(self) -> list[InstanceLike]:
        """Every instance of the run, in the order they were placed."""
        return [placed.instance for placed in self.placed]

    def where(self, instance: InstanceLike) -> Placed:
        """Return where `instance` stands."""
        return self.placed[instance.instance_id]

    @property
    def num_gpus(self) -> int:
        """GPUs of the placed instances, the most at a time."""
        changes = [(one.taken_s, one.num_gpus) for one in self.placed]
        changes += [(one.freed_s, -one.num_gpus) for one in self.placed if one.freed_s >= 0.0]
        return max(accumulate(n for _, n in sorted(changes)), default=0)

    @property
    def most_instances(self) -> dict[str, int]:
        """Instances of each role, where they come and go the most in service; of one model."""
        most = Counter(placed.role for placed in self.placed)
        for scaled in self.scaled:
            most[scaled.role] = max(most[scaled.role], scaled.most)
        return dict(most)

    @property
    def most_gpus(self) -> int:
        """GPUs of the most instances in service, as far as there are machines; of one model."""
        each = {placed.role: placed.num_gpus for placed in self.placed}
        wanted = sum(count * each[role] for role, count in self.most_instances.items())
        return min(wanted, self.environment.cluster.num_gpus)

    # --- placement ----------------------------------------------------------------------------

    def room(self, shape: InstanceShape, node: int) -> int:
        """Whole instances of `shape` that still fit on `node`."""
        return self._placement.room(shape, node)

    def num_that_fit(self, shape: InstanceShape) -> int:
        """Instances of `shape` that still fit (`Placement.num_that_fit`)."""
        return self._placement.num_that_fit(shape)

    def place(
        self, shape: InstanceShape, role: str, node: int | None = None, *, last: bool = False
    ) -> InstanceLike:
        """Put an instance of `shape` on the first node with room, or on `node`.

        Parameters
        ----------
        shape : InstanceShape
            Its parallelism, scheduler and limits.
        role : str
            ``"mixed"``, ``"prefill"`` or ``"decode"``.
        node : int, optional
            Where.
        last : bool
            On the last node with room instead of the first.

        Raises
        ------
        ConfigError
            If the model does not fit its GPUs or no node has room.
        """
        number, placement, environment = len(self.placed), self._placement, self.environment
        groups = placement.place(shape, f"instance-{number}", node, last=last)
        if groups is None:
            cluster, count = environment.cluster, placement.num_placed
            raise ConfigError(
                shape.key("instances"),
                count + 1,
                f"no node has {shape.num_gpus} free GPUs left: the cluster has {cluster.num_nodes} "
                f"nodes of {cluster.gpus_per_node} and holds {count} instances",
                f"Use at most {count} instances, or add nodes.",
            )
        instance = self._factory.make(number, shape, role, groups)
        placement.take(groups)
        for group in groups:
            self.topology.add(group)
        self.placed.append(
            Placed(
                instance=instance,
                role=role,
                model=environment.model.spec.name,
                gpu=environment.cluster.gpu.name,
                groups=groups,
                first_node=placement.machines.first_node,
                num_gpus=shape.num_gpus,
                layout=shape.layout,
                taken_s=self.env.now,
            )
        )
        if self.moves_kv and isinstance(instance, Instance):
            wires = self.topology.wires(groups[0])
            num_gpus = len(groups[0].gpus)
            self._factory.share_wires(instance, shape, num_gpus, wires, self.network)
        return instance

    def remove(self, instance: InstanceLike) -> None:
        """Give the GPUs of `instance` back; it must have nothing left to do."""
        if instance.has_unfinished:
            raise InvariantError("an instance with unfinished requests cannot be removed")
        placed = self.where(instance)
        placed.freed_s = self.env.now
        self._placement.give_back(placed.groups)

    def gpus_on(self, node: int, choice: int) -> GpuGroup:
        """GPUs of one of the instances on `node`, the same for the same `choice`; else all."""
        ours = self._placement.machines.first_node
        here = [
            group
            for placed in self.placed
            for group in placed.groups
            if group.node == node and placed.first_node == ours
        ]
        if here:
            return here[choice % len(here)]
        per_node = self.environment.cluster.gpus_per_node
        return GpuGroup(f"node-{node}", node, tuple(range(per_node)))
