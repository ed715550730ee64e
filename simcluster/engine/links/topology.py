"""Topology: how GPUs, PCIe switches, NVLink domains, NICs and the network are linked; paths."""

from __future__ import annotations

import math

from simcluster.catalog.specs import LinkSpec
from simcluster.config import ClusterConfig
from simcluster.engine.links.link import Link, Path
from simcluster.engine.placement import GpuGroup
from simcluster.errors import ConfigError


class Topology:
    """Links of a cluster and the paths over them.

    A transfer between groups of GPUs moves a share of its bytes over each GPU, so the links of the
    GPUs of a group in one direction count as one with their bandwidths added; so do the NICs that
    serve them and the PCIe switches they hang on. GPU g of a node with N NICs and G GPUs uses NIC
    g N // G. Groups that have a NIC in common share all the NICs that either uses.

    Where GPUs reach each other over PCIe that is the same wire on which they reach the host and
    the NICs. NVLink is a wire of its own inside a domain; GPUs of different domains meet over PCIe.

    Parameters
    ----------
    config : ClusterConfig
        The machines.
    first_node : int
        Number of the first node in names.

    Notes
    -----
    Not modelled: memory bandwidth of the host, the link between two CPU sockets.
    """

    def __init__(self, config: ClusterConfig, first_node: int = 0) -> None:
        self._config = config
        self._first_node = first_node
        self._links: dict[str, Link] = {}
        self._groups: dict[int, list[GpuGroup]] = {}
        self._bundles: dict[tuple[int, str], list[frozenset[int]]] = {}
        self._one_wire = config.fabric.same_wire(config.pcie)

    def add(self, group: GpuGroup) -> None:
        """Note that `group` is in use; before paths of its node are asked for."""
        self._groups.setdefault(group.node, []).append(group)

    # --- paths --------------------------------------------------------------------------------

    def between(self, source: GpuGroup, destination: GpuGroup) -> Path:
        """From the GPUs of one group to those of another."""
        if source.node != destination.node:
            return (
                self._pcie(source, "out"),
                *self._to_nic(source, "out"),
                *self._network(source, destination),
                *self._to_nic(destination, "in"),
                self._pcie(destination, "in"),
            )
        if not self._one_wire and self._domains(source) & self._domains(destination):
            fabric = self._config.fabric
            return (
                self._of_gpus(source, "fabric out", fabric, fabric.latency_s),
                self._of_gpus(destination, "fabric in", fabric, 0.0),
            )
        return (
            self._pcie(source, "out"),
            *self._peers(source),
            *self._between_switches(source, destination),
            self._pcie(destination, "in"),
        )

    def to_host(self, source: GpuGroup, near: GpuGroup) -> Path:
        """From the GPUs of a group to the host memory beside the GPUs of another.

        On another node it arrives over the NICs that serve those GPUs.
        """
        path = (self._pcie(source, "out"),)
        if near.node == source.node:
            return (*path, *self._switches(source, "up"))
        return (*path, *self._to_nic(source, "out"), *self._network(source, near))

    def from_host(self, near: GpuGroup, destination: GpuGroup) -> Path:
        """From the host memory beside the GPUs of one group to the GPUs of another."""
        memory = self._link(f"{self._node(near)} host out", math.inf, self._config.pcie.latency_s)
        last = self._pcie(destination, "in")
        if near.node == destination.node:
            return (memory, *self._switches(destination, "down"), last)
        return (memory, *self._network(near, destination), *self._to_nic(destination, "in"), last)

    def wires(self, group: GpuGroup) -> tuple[Link, ...]:
        """Links of the GPUs of `group` that collectives share with KV transfers; none on NVLink."""
        if not self._one_wire or len(group.gpus) == 1:
            return ()
        return self._pcie(group, "out"), self._pcie(group, "in")

    # --- links --------------------------------------------------------------------------------

    def _pcie(self, group: GpuGroup, way: str) -> Link:
        pcie = self._config.pcie
        # A message pays its latency once: where it sets out.
        return self._of_gpus(group, f"pcie {way}", pcie, pcie.latency_s if way == "out" else 0.0)

    def _of_gpus(self, group: GpuGroup, name: str, spec: LinkSpec, latency_s: float) -> Link:
        bandwidth = len(group.gpus) * spec.bandwidth * spec.efficiency
        return self._link(f"{group.owner} {name}", bandwidth, latency_s)

    def _peers(self, group: GpuGroup) -> Path:
        """What the way from GPU to GPU reaches, where that is less than to the host."""
        fabric, pcie = self._config.fabric, self._config.pcie
        if not self._one_wire or fabric.efficiency >= pcie.efficiency:
            return ()
        return (self._of_gpus(group, "to other GPUs", fabric, 0.0),)

    def _switches(self, group: GpuGroup, way: str) -> Path:
        """The links between the PCIe switches of `group` and the CPU; none without switches."""
        size = self._config.gpus_per_switch
        if size is None or size == 1:
            return ()
        switches = self._bundle(group, "switch")
        pcie = self._config.pcie
        bandwidth = len(switches) * pcie.bandwidth * pcie.efficiency
        return (self._link(f"{self._node(group)} switch{_named(switches)} {way}", bandwidth, 0.0),)

    def _between_switches(self, source: GpuGroup, destination: GpuGroup) -> Path:
        size = self._config.gpus_per_switch
        if size is None or self._used(source, "switch") == self._used(destination, "switch"):
            return ()
        return (*self._switches(source, "up"), *self._switches(destination, "down"))

    def _to_nic(self, group: GpuGroup, way: str) -> Path:
        """The uplinks of the switches of `group`, where the NICs do not hang on them too."""
        config = self._config
        size = config.gpus_per_switch
        if size is None or config.num_nics * size >= config.gpus_per_node:
            return ()
        return self._switches(group, "up" if way == "out" else "down")

    def _network(self, source: GpuGroup, destination: GpuGroup) -> Path:
        config = self._config
        if config.network is None:
            raise ConfigError(
                "cluster.network",
                "none",
                f"there is no path from node {source.node} to node {destination.node}",
                "Name a network, or keep prefill and decode on one node.",
            )
        path = [self._nics(source, "out")]
        size = config.nodes_per_switch
        if size is not None and source.node // size != destination.node // size:
            most = size * config.num_nics * config.network.bandwidth * config.network.efficiency
            uplink = most / config.oversubscription
            path.append(self._link(f"leaf-{source.node // size} up", uplink, 0.0))
            path.append(self._link(f"leaf-{destination.node // size} down", uplink, 0.0))
        path.append(self._nics(destination, "in"))
        return tuple(path)

    def _nics(self, group: GpuGroup, way: str) -> Link:
        """The NICs that serve `group`."""
        config = self._config
        assert config.network is not None
        each = config.network.bandwidth * config.network.efficiency
        latency_s = config.network.latency_s if way == "out" else 0.0
        nics = self._bundle(group, "nic")
        label = "" if len(nics) == config.num_nics else _named(nics)
        return self._link(f"{self._node(group)} nic{label} {way}", len(nics) * each, latency_s)

    def _used(self, group: GpuGroup, kind: str) -> frozenset[int]:
        """NICs or PCIe switches that the GPUs of `group` use."""
        config = self._config
        if kind == "switch":
            return frozenset(gpu // (config.gpus_per_switch or 1) for gpu in group.gpus)
        return frozenset(gpu * config.num_nics // config.gpus_per_node for gpu in group.gpus)

    def _bundle(self, group: GpuGroup, kind: str) -> frozenset[int]:
        """The NICs or switches that count as one link for `group`."""
        used = self._used(group, kind)
        bundles = self._bundles.get((group.node, kind))
        if bundles is None:
            bundles = self._bundles[(group.node, kind)] = []
            for other in self._groups.get(group.node, []):
                members = self._used(other, kind)
                touched = [bundle for bundle in bundles if bundle & members]
                bundles[:] = [bundle for bundle in bundles if not bundle & members]
                bundles.append(members.union(*touched))
        for bundle in bundles:
            if bundle & used:
                return bundle
        bundles.append(used)
        return used

    def _domains(self, group: GpuGroup) -> frozenset[int]:
        size = self._config.gpus_per_domain or self._config.gpus_per_node
        return frozenset(gpu // size for gpu in group.gpus)

    def _node(self, group: GpuGroup) -> str:
        return f"node-{self._first_node + group.node}"

    def _link(self, name: str, bandwidth: float, latency_s: float) -> Link:
        link = self._links.get(name)
        if link is None:
            link = self._links[name] = Link(name, bandwidth, latency_s)
        return link


def _named(members: frozenset[int]) -> str:
    first, last = min(members), max(members)
    return f"-{first}" if first == last else f"-{first}..{last}"
