"""The way of the KV cache from prefill to decode instances, for one request alone."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from simcluster.config import ClusterConfig
from simcluster.engine.groups.cluster import Cluster, Placed
from simcluster.engine.links.link import Path
from simcluster.strategies import FuDG
from simcluster.units import GB


def facts(strategy: FuDG, cluster: Cluster, prompt_len: int) -> dict[str, Any]:
    """Return bytes and time of the transfer of a prompt of `prompt_len` tokens, as JSON has it."""
    num_bytes = cluster.environment.model.sequence_kv().num_bytes(prompt_len)
    copies = [_copy(path, num_bytes) for path in _first_paths(strategy, cluster)]
    if strategy.connector(cluster) == "inside":
        rates = strategy.rates(cluster)
        put_s, get_s = (num_bytes / r for r in (rates.put_bytes_per_s, rates.get_bytes_per_s))
        return {
            "bytes": num_bytes,
            "seconds": put_s + get_s + rates.poll_s + sum(copy["seconds"] for copy in copies),
            "connector": "inside",
            "buffer_bytes": None if math.isinf(rates.buffer_bytes) else rates.buffer_bytes,
            "copies": copies,
        }
    return {
        "bytes": num_bytes,
        "seconds": sum(copy["seconds"] for copy in copies),
        "connector": "beside",
        "buffer_bytes": None,
        "copies": copies,
    }


def _first_paths(strategy: FuDG, cluster: Cluster) -> tuple[Path, ...]:
    """Paths between the first two instances of the pools that work together."""

    def of(role: str) -> list[Placed]:
        return [placed for placed in cluster.placed if placed.role == role]

    for source in of("prefill"):
        for destination in of("decode"):
            if paths := strategy.paths(cluster, source.instance, destination.instance):
                return paths
    return ()


def _copy(path: Path, num_bytes: int) -> dict[str, Any]:
    """One copy over the links of a path: the narrowest decides."""
    narrowest = min(path, key=lambda link: link.bandwidth)
    return {
        "links": [link.name for link in path],
        "narrowest": narrowest.name,
        "gb_per_s": narrowest.bandwidth / GB,
        "seconds": sum(link.latency_s for link in path) + num_bytes / narrowest.bandwidth,
    }


def links(strategies: Iterable[dict[str, Any]], cluster: ClusterConfig) -> list[dict[str, Any]]:
    """Return the kinds of links that the transfers of some strategies take, as JSON has it."""
    names = {
        name
        for known in strategies
        for copy in (known["transfer"] or {"copies": ()})["copies"]
        for name in copy["links"]
    }
    specs = [(" fabric ", cluster.fabric), (" pcie ", cluster.pcie), (" nic", cluster.network)]
    return [
        {
            "purpose": "KV transfer",
            "link": spec.name,
            "gb_per_s": spec.bandwidth / GB,
            "reached_share": spec.efficiency,
            "accuracy": "data-sheet",
            "source": spec.source,
        }
        for part, spec in specs
        if spec is not None and any(part in name for name in names)
    ]
