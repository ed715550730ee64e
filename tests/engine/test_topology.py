"""Machines: which links a path takes, which GPUs an instance gets, what is refused."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest

from simcluster.config import ClusterConfig, Environment
from simcluster.engine.clock import Clock
from simcluster.engine.groups.cluster import Cluster
from simcluster.engine.links.link import Path
from simcluster.engine.links.topology import Topology
from simcluster.engine.placement import GpuGroup
from simcluster.engine.recorder import Recorder
from simcluster.engine.shape import InstanceShape
from simcluster.errors import ConfigError
from simcluster.roofline.of_environment import group_fabric
from simcluster.testing import specs
from simcluster.testing.step_times import ConstantStepTime, same_for_all


def machines(**changes: Any) -> ClusterConfig:
    """Two nodes of eight A100 with NVLink and four NICs each."""
    config = specs.environment(num_nodes=2, gpus_per_node=8).cluster
    return dataclasses.replace(config, **{"num_nics": 4, **changes})


def names(path: Path) -> list[str]:
    """Return the names of its links."""
    return [link.name for link in path]


def group(owner: str, node: int, *gpus: int) -> GpuGroup:
    """Return so many GPUs of a node."""
    return GpuGroup(owner, node, gpus)


A, B = group("a", 0, 0, 1), group("b", 0, 6, 7)
FAR = group("c", 1, 2, 3)


def topology(config: ClusterConfig, *groups: GpuGroup) -> Topology:
    """Return the links of machines on which `groups` are placed."""
    links = Topology(config)
    for one in groups or (A, B, FAR):
        links.add(one)
    return links


def test_nvlink_joins_the_gpus_of_a_node() -> None:
    """Out of the GPUs of one group and into those of the other, each with the links of all."""
    config = machines()
    path = topology(config).between(A, B)
    assert names(path) == ["a fabric out", "b fabric in"]
    assert {link.bandwidth for link in path} == {
        2 * config.fabric.bandwidth * config.fabric.efficiency
    }
    assert sum(link.latency_s for link in path) == config.fabric.latency_s


def test_gpus_of_different_domains_meet_over_pcie() -> None:
    """Bridges join pairs."""
    assert names(topology(machines(gpus_per_domain=2)).between(A, B)) == ["a pcie out", "b pcie in"]


def test_a_pcie_switch_is_passed_by_what_leaves_it() -> None:
    """GPUs 0-3 hang on one switch, 4-7 on another: a to b leaves it, a to d does not."""
    config = machines(fabric=specs.pcie4(), gpus_per_switch=4)
    near = group("d", 0, 2, 3)
    links = topology(config, A, B, near)
    path = links.between(A, B)
    assert names(path) == ["a pcie out", "node-0 switch-0 up", "node-0 switch-1 down", "b pcie in"]
    assert path[1].bandwidth == config.pcie.bandwidth * config.pcie.efficiency
    assert names(links.between(A, near)) == ["a pcie out", "d pcie in"]
    assert names(links.to_host(A, near)) == ["a pcie out", "node-0 switch-0 up"]
    assert names(links.from_host(near, B)) == [
        "node-0 host out",
        "node-0 switch-1 down",
        "b pcie in",
    ]


def test_gpus_use_the_nics_beside_them() -> None:
    """Four NICs for eight GPUs: two GPUs on each; what uses one NIC in common shares it."""
    config = machines()
    assert config.network is not None
    links = topology(config)
    path = links.between(A, FAR)
    assert names(path) == ["a pcie out", "node-0 nic-0 out", "node-1 nic-1 in", "c pcie in"]
    assert path[1].bandwidth == config.network.bandwidth * config.network.efficiency
    latency_s = config.pcie.latency_s + config.network.latency_s
    assert sum(link.latency_s for link in path) == latency_s
    wide = group("w", 0, 4, 5, 6, 7)
    path = topology(config, A, wide).between(wide, FAR)
    assert names(path)[1] == "node-0 nic-2..3 out"
    assert path[1].bandwidth == 2 * config.network.bandwidth * config.network.efficiency
    one_nic = topology(machines(num_nics=1))
    assert one_nic.between(A, FAR)[1] is one_nic.between(B, FAR)[1]


def test_nics_that_do_not_hang_on_the_switches_are_behind_the_cpu() -> None:
    """One NIC and two switches: leaving the node passes the switch's uplink."""
    links = topology(machines(num_nics=1, gpus_per_switch=4))
    assert names(links.between(A, FAR)) == [
        "a pcie out",
        "node-0 switch-0 up",
        "node-0 nic out",
        "node-1 nic in",
        "node-1 switch-0 down",
        "c pcie in",
    ]


def test_uplinks_of_network_switches_are_oversubscribed() -> None:
    """Two nodes on a switch, uplinks of a third of their bandwidth, used between switches only."""
    config = machines(num_nodes=4, nodes_per_switch=2, oversubscription=3.0)
    assert config.network is not None
    other = group("e", 2, 2, 3)
    links = topology(config, A, FAR, other)
    assert not [name for name in names(links.between(A, FAR)) if "leaf" in name]
    up, down = links.between(A, other)[2:4]
    assert (up.name, down.name) == ("leaf-0 up", "leaf-1 down")
    nics = 2 * 4 * config.network.bandwidth * config.network.efficiency
    assert up.bandwidth == pytest.approx(nics / 3)


def test_host_memory_is_reached_over_pcie_and_nics() -> None:
    """To the memory beside another group, and from it to that group: one crossing in all."""
    links = topology(machines())
    assert names(links.to_host(A, FAR)) == ["a pcie out", "node-0 nic-0 out", "node-1 nic-1 in"]
    assert names(links.from_host(FAR, FAR)) == ["node-1 host out", "c pcie in"]
    assert links.from_host(FAR, FAR)[0].bandwidth == math.inf
    assert "node-1 nic-1 out" in names(links.from_host(FAR, B))


def test_without_a_network_there_is_no_path_between_nodes() -> None:
    """One line that says which nodes."""
    with pytest.raises(ConfigError, match="there is no path from node 0 to node 1"):
        topology(machines(network=None)).between(A, FAR)


# --- placement -----------------------------------------------------------------------------------


def cluster(environment: Environment | None = None, **changes: Any) -> Cluster:
    """Return an empty cluster, of which instances take a constant time per step."""
    environment = environment or specs.environment(max_model_len=256)
    config = dataclasses.replace(environment.cluster, **changes)
    return Cluster(
        Clock(),
        dataclasses.replace(environment, cluster=config),
        Recorder(),
        step_time=same_for_all(ConstantStepTime(1.0)),
    )


def gpus(where: Cluster) -> list[str]:
    """Return the GPUs of each instance, as node:first-last."""
    return [" ".join(map(str, placed.groups)) for placed in where.placed]


def test_groups_are_packed_inside_nodes() -> None:
    """Groups of different sizes take neighbours where they can, never two nodes."""
    where = cluster(num_nodes=2)
    for tp_size in (2, 4, 2, 8):
        where.place(InstanceShape("s", tp_size, num_kv_blocks=100), "mixed")
    assert gpus(where) == ["0:0-1", "0:4-7", "0:2-3", "1:0-7"]
    with pytest.raises(ConfigError, match="no node has 1 free GPUs left"):
        where.place(InstanceShape("s", 1, num_kv_blocks=100), "mixed")


def test_a_group_takes_what_is_free_where_no_aligned_run_is() -> None:
    """0-2 and 3 are taken; the next three start neither at 3 nor at 6."""
    where = cluster(num_nodes=1)
    for tp_size in (3, 1, 3):
        where.place(InstanceShape("s", tp_size, num_kv_blocks=100), "mixed")
    assert gpus(where) == ["0:0-2", "0:3", "0:4-6"]


def test_a_group_crosses_nodes_only_when_asked() -> None:
    """TP 16 on nodes of 8: refused with the way out, else on two whole nodes over the network."""
    shape = InstanceShape("s", 16, num_kv_blocks=100)
    where = cluster()
    with pytest.raises(ConfigError, match="tp_across_nodes = true"):
        where.num_that_fit(shape)
    asked = dataclasses.replace(shape, tp_across_nodes=True)
    assert where.num_that_fit(asked) == 1
    config = where.environment.cluster
    assert config.network is not None
    slow = group_fabric(config, 16)
    assert slow.bandwidth == config.network.bandwidth * config.network.efficiency * config.num_nics
    assert slow.allreduce_latency_s > config.network.latency_s
    assert group_fabric(config, 8) == config.fabric
    with pytest.raises(ConfigError, match="Use a multiple of 8"):
        where.num_that_fit(dataclasses.replace(asked, tp_size=12))
    with pytest.raises(ConfigError, match="needs a network"):
        cluster(network=None).num_that_fit(asked)


def test_a_group_larger_than_its_domain_talks_over_pcie() -> None:
    """Bridged pairs: two GPUs over the bridge, four over PCIe."""
    config = machines(gpus_per_domain=2)
    assert group_fabric(config, 2) == config.fabric
    assert group_fabric(config, 4) == config.pcie


def test_placing_looks_at_every_node_once() -> None:
    """So that it takes time in proportion to the nodes: rooms are asked for about twice a node."""
    where = cluster(num_nodes=300, gpus_per_node=1)
    asked = 0
    room = where._placement.room

    def counted(shape: InstanceShape, node: int) -> int:
        nonlocal asked
        asked += 1
        return room(shape, node)

    where._placement.room = counted  # type: ignore[method-assign]
    shape = InstanceShape("s", 1, num_kv_blocks=100)
    for number in range(300):
        where.place(shape, "mixed", last=number % 2 == 1)
    assert asked < 4 * 300
    assert [placed.node for placed in where.placed[:4]] == [0, 299, 1, 298]
