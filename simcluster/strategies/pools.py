"""Where the instances of a prefill and a decode pool stand: together on nodes, or apart."""

from __future__ import annotations

from collections.abc import Mapping

from simcluster.engine.groups.cluster import Cluster
from simcluster.engine.instance import InstanceLike
from simcluster.engine.shape import InstanceShape
from simcluster.errors import ConfigError
from simcluster.strategies.base import count_that_fits

Pools = tuple[list[InstanceLike], list[InstanceLike]]
"""Prefill and decode instances."""


def pool_sizes(
    cluster: Cluster,
    shapes: Mapping[str, InstanceShape],
    prefill: int | None,
    decode: int | None,
) -> tuple[int, int]:
    """Return how many prefill and decode instances to place; None: half, or the rest, of what fits.

    Raises
    ------
    ConfigError
        If they do not fit together, or it is not said how many instances of unequal size there are.
    """
    shape = shapes["decode"]
    if shapes["prefill"].num_gpus != shape.num_gpus:
        if prefill is None or decode is None:
            key = "prefill_instances" if prefill is None else "decode_instances"
            rule = "prefill and decode instances have unequal numbers of GPUs"
            raise ConfigError(shape.key(key), None, rule, "Say how many of each.")
        return prefill, decode
    most = count_that_fits(cluster, shape, None)
    if prefill is None:
        prefill = max(1, most - decode) if decode is not None else max(1, most // 2)
    if decode is None:
        decode = max(1, most - prefill)
    if prefill + decode > most:
        wanted = f"{prefill} prefill + {decode} decode"
        raise ConfigError(
            shape.key("prefill_instances"),
            prefill,
            f"{wanted} instances of {shape.num_gpus} GPUs do not fit: the cluster holds {most}",
            f"Use at most {most} together (two are the least), or more nodes.",
        )
    return prefill, decode


def place_apart(
    cluster: Cluster, shapes: Mapping[str, InstanceShape], num_prefill: int, num_decode: int
) -> Pools:
    """Place the two pools from opposite ends: on nodes of their own if possible."""
    prefill = [cluster.place(shapes["prefill"], "prefill") for _ in range(num_prefill)]
    decode = [cluster.place(shapes["decode"], "decode", last=True) for _ in range(num_decode)]
    return prefill, decode


def place_together(
    cluster: Cluster, shapes: Mapping[str, InstanceShape], num_prefill: int, num_decode: int
) -> Pools:
    """Deal both roles out evenly over the nodes, so that every prefill finds a decode.

    Raises
    ------
    ConfigError
        If a node does not hold one of each role, a role would be missing on a node, or instances of
        the two have unequal numbers of GPUs.
    """
    shape = shapes["decode"]  # both take the same room
    if shapes["prefill"].num_gpus != shape.num_gpus:
        rule = "prefill and decode instances of unequal numbers of GPUs do not share nodes evenly"
        remedy = 'Use placement = "inter-node", or layouts of as many GPUs.'
        raise ConfigError(shape.key("placement"), "intra-node", rule, remedy)
    placed: dict[str, list[InstanceLike]] = {"prefill": [], "decode": []}
    left = {"prefill": num_prefill, "decode": num_decode}
    every = range(cluster.environment.cluster.num_nodes)
    nodes = [node for node in every if cluster.room(shape, node) >= 2]
    used = nodes[: min(num_prefill, num_decode)]
    if not used:
        raise ConfigError(
            shape.key("placement"),
            "intra-node",
            f"no node holds two instances of {shape.num_gpus} GPUs, one of each role",
            'Use a smaller tp_size, or placement = "inter-node".',
        )
    while left["prefill"] or left["decode"]:
        for node in used:
            for role in ("prefill", "decode"):
                if left[role] and cluster.room(shape, node):
                    placed[role].append(cluster.place(shapes[role], role, node))
                    left[role] -= 1
        if not any(cluster.room(shape, node) for node in used) and any(left.values()):
            raise ConfigError(
                shape.key("prefill_instances"),
                num_prefill,
                f"{num_prefill} prefill and {num_decode} decode instances cannot share "
                f"{len(used)} nodes so that every node has both roles",
                "Choose numbers closer to each other, or another tp_size.",
            )
    return placed["prefill"], placed["decode"]
