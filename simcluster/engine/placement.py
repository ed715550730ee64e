"""Placement: which GPUs an instance gets. Pure decisions, no clock."""

from __future__ import annotations

from dataclasses import dataclass

from simcluster.config import ClusterConfig
from simcluster.engine.shape import InstanceShape
from simcluster.errors import ConfigError


@dataclass(frozen=True, slots=True)
class GpuGroup:
    """GPUs of one node that work together: a tensor-parallel group, or all of an instance."""

    owner: str
    """Whose they are, for the names of their links, such as ``"instance-3"``."""
    node: int
    """Their node."""
    gpus: tuple[int, ...]
    """Which GPUs of the node, in order."""

    def __str__(self) -> str:
        first, last = self.gpus[0], self.gpus[-1]
        if self.gpus == tuple(range(first, last + 1)):
            return f"{self.node}:{first}" if first == last else f"{self.node}:{first}-{last}"
        return f"{self.node}:{','.join(map(str, self.gpus))}"


class Machines:
    """Nodes of one GPU type in a run, and what is free on them; several models may share them.

    Parameters
    ----------
    config : ClusterConfig
        Their GPUs and links.
    first_node : int
        Number of the first of them; those of other types come before.

    Attributes
    ----------
    free_gpus : list of list of int
        Of each node, in order.
    num_freed : int
        How often GPUs were given back.
    """

    def __init__(self, config: ClusterConfig, first_node: int = 0) -> None:
        self.config = config
        self.first_node = first_node
        self.free_gpus = [list(range(config.gpus_per_node)) for _ in range(config.num_nodes)]
        self.num_freed = 0

    def take(self, groups: tuple[GpuGroup, ...]) -> None:
        """Let nobody else have the GPUs of `groups`."""
        for group in groups:
            taken = set(group.gpus)
            free = self.free_gpus[group.node]
            self.free_gpus[group.node] = [gpu for gpu in free if gpu not in taken]

    def give_back(self, groups: tuple[GpuGroup, ...]) -> None:
        """Let others have the GPUs of `groups`."""
        for group in groups:
            self.free_gpus[group.node].extend(group.gpus)
            self.free_gpus[group.node].sort()
        self.num_freed += 1

    def whole_free_nodes(self) -> list[int]:
        """Nodes of which nobody has a GPU."""
        per_node = self.config.gpus_per_node
        return [node for node, free in enumerate(self.free_gpus) if len(free) == per_node]


class Placement:
    """Instances of one model on machines of one type: where the next one goes.

    A tensor-parallel group stays inside a node, on neighbouring GPUs where it can. A pipeline
    larger than a node goes stage by stage to the first nodes with room, a group larger than a node
    to the first free nodes.

    Attributes
    ----------
    num_placed : int
        Instances that stand there.
    """

    def __init__(self, machines: Machines) -> None:
        self.machines = machines
        self.num_placed = 0
        self._num_homes = [0] * machines.config.num_nodes  # instances that begin there
        self._ends: dict[InstanceShape, list[int]] = {}  # first and last node that may have room
        self._ends_freed = machines.num_freed

    def room(self, shape: InstanceShape, node: int) -> int:
        """Whole instances of `shape` that still fit on `node`."""
        most = shape.instances_per_node or self.machines.config.gpus_per_node
        groups = self._groups_left(shape, node) // shape.num_groups
        return max(0, min(groups, most - self._num_homes[node]))

    def _groups_left(self, shape: InstanceShape, node: int) -> int:
        """Tensor-parallel groups of `shape` that the free GPUs of `node` hold."""
        return len(self.machines.free_gpus[node]) // shape.tp_size

    def num_that_fit(self, shape: InstanceShape) -> int:
        """Instances of `shape` that still fit; a pipeline larger than a node spans several.

        Raises
        ------
        ConfigError
            If the tensor-parallel group is larger than a node and must not be.
        """
        per_node = self.machines.config.gpus_per_node
        nodes = range(len(self.machines.free_gpus))
        if shape.tp_size > per_node:
            self._check_across_nodes(shape)
            free = len(self.machines.whole_free_nodes())
            return free // (-(-shape.tp_size // per_node) * shape.num_groups)
        if shape.num_gpus <= per_node:
            return sum(self.room(shape, node) for node in nodes)
        return sum(self._groups_left(shape, node) for node in nodes) // shape.num_groups

    def _check_across_nodes(self, shape: InstanceShape) -> None:
        per_node, key = self.machines.config.gpus_per_node, shape.key("tp_size")
        if not shape.tp_across_nodes:
            rule = f"a tensor-parallel group stays inside a node, and a node has {per_node} GPUs"
            remedy = f"Use at most {per_node}, or set tp_across_nodes = true."
            raise ConfigError(key, shape.tp_size, rule, remedy)
        if shape.tp_size % per_node:
            rule = f"a group that crosses nodes takes whole nodes, and a node has {per_node} GPUs"
            raise ConfigError(key, shape.tp_size, rule, f"Use a multiple of {per_node}.")
        if self.machines.config.network is None:
            rule = "a group that crosses nodes needs a network, and there is none"
            remedy = f"Use at most {per_node}, or name cluster.network."
            raise ConfigError(key, shape.tp_size, rule, remedy)

    def place(
        self, shape: InstanceShape, owner: str, node: int | None = None, *, last: bool = False
    ) -> tuple[GpuGroup, ...] | None:
        """Choose the GPUs of the next instance of `shape`; they are free until `take`.

        Parameters
        ----------
        shape : InstanceShape
            Its parallelism.
        owner : str
            Its name.
        node : int, optional
            Where; default: the first node with room.
        last : bool
            The last node with room instead of the first.

        Returns
        -------
        tuple of GpuGroup or None
            By stage; a group that crosses nodes is written down node by node, like stages. None if
            there is no room.
        """
        per_node = self.machines.config.gpus_per_node
        if shape.tp_size > per_node:
            self._check_across_nodes(shape)
            whole, needed = self.machines.whole_free_nodes(), shape.num_gpus // per_node
            if len(whole) < needed:
                return None
            return tuple(self._group(owner, n, per_node, 0) for n in whole[:needed])
        if shape.num_gpus <= per_node:
            home = self._node_with_room(shape, last) if node is None else node
            if home is None or not self.room(shape, home):
                return None
            return tuple(
                self._group(owner, home, shape.tp_size, k) for k in range(shape.num_groups)
            )
        nodes = range(len(self.machines.free_gpus))
        homes = [(n, k) for n in nodes for k in range(self._groups_left(shape, n))]
        if len(homes) < shape.num_groups:
            return None
        return tuple(self._group(owner, n, shape.tp_size, k) for n, k in homes[: shape.num_groups])

    def take(self, groups: tuple[GpuGroup, ...]) -> None:
        """Put an instance on the GPUs of `groups`."""
        self.machines.take(groups)
        self._num_homes[groups[0].node] += 1
        self.num_placed += 1

    def give_back(self, groups: tuple[GpuGroup, ...]) -> None:
        """Remove the instance that stands on `groups`."""
        self.machines.give_back(groups)
        self._num_homes[groups[0].node] -= 1
        self.num_placed -= 1

    def _node_with_room(self, shape: InstanceShape, last: bool) -> int | None:
        """First node with room for `shape`, or last.

        Room only shrinks while no instance is removed, so that no node is asked twice.
        """
        machines = self.machines
        if self._ends_freed != machines.num_freed:
            self._ends_freed = machines.num_freed
            self._ends.clear()
        ends = self._ends.setdefault(shape, [0, len(machines.free_gpus) - 1])
        while ends[0] <= ends[1]:
            node = ends[last]
            if self.room(shape, node):
                return node
            ends[last] += -1 if last else 1
        return None

    def _group(self, owner: str, node: int, num_gpus: int, skipped: int) -> GpuGroup:
        """Free GPUs of `node` for a group, leaving out those of `skipped` such groups."""
        free = self.machines.free_gpus[node]
        known = set(free)
        # Neighbours first: they share a switch, a domain, a NIC.
        runs = [
            tuple(range(first, first + num_gpus))
            for first in range(0, self.machines.config.gpus_per_node, num_gpus)
            if all(gpu in known for gpu in range(first, first + num_gpus))
        ]
        if len(runs) > skipped:
            return GpuGroup(owner, node, runs[skipped])
        taken = {gpu for run in runs for gpu in run}
        rest = [gpu for gpu in free if gpu not in taken]
        first = (skipped - len(runs)) * num_gpus
        return GpuGroup(owner, node, tuple(rest[first : first + num_gpus]))
