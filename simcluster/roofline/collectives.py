"""The time of a collective inside a tensor-parallel group: a latency plus ring traffic."""

from __future__ import annotations

from simcluster.catalog.specs import LinkSpec


def all_reduce_terms(link: LinkSpec, tp_size: int) -> tuple[float, float]:
    """Return latency (s) and efficiency of collectives over `tp_size` GPUs.

    Where world sizes were measured one by one, the largest that is not above `tp_size` counts, or
    the smallest if all are above. Otherwise one latency and one efficiency hold for all.
    """
    if not link.allreduce_terms:
        return link.allreduce_latency_s, link.allreduce_efficiency
    terms = min(
        link.allreduce_terms,
        key=lambda known: (known.tp_size > tp_size, abs(known.tp_size - tp_size)),
    )
    return terms.latency_s, terms.efficiency


def all_reduce_s(link: LinkSpec, tp_size: int, message_bytes: float) -> float:
    """Time of a ring all-reduce (s); 0 in a group of one.

    Parameters
    ----------
    link : LinkSpec
        Fabric between the ranks, per GPU and direction.
    tp_size : int
        Ranks of the group.
    message_bytes : float
        Size of the tensor that every rank holds (bytes).

    Notes
    -----
    Each rank sends ``2 (t - 1) / t`` of the tensor, in a reduce-scatter and an all-gather.
    """
    return _ring_s(link, tp_size, 2.0 * message_bytes)


def all_gather_s(link: LinkSpec, tp_size: int, message_bytes: float) -> float:
    """Time to gather a tensor of `message_bytes` that is split over the ranks (s); 0 for one."""
    return _ring_s(link, tp_size, message_bytes)


def _ring_s(link: LinkSpec, tp_size: int, passed_bytes: float) -> float:
    """Time to pass all but one share of `passed_bytes` around the ring (s)."""
    if tp_size == 1:
        return 0.0
    latency_s, efficiency = all_reduce_terms(link, tp_size)
    sent = (tp_size - 1) / tp_size * passed_bytes
    return latency_s + sent / (link.bandwidth * efficiency)
