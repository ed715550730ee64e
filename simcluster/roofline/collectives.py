"""The time of a collective inside a tensor-parallel group: a latency plus ring traffic."""

from __future__ import annotations

from simcluster.specs import LinkSpec


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
    if tp_size == 1:
        return 0.0
    sent = 2.0 * (tp_size - 1) / tp_size * message_bytes
    return link.allreduce_latency_s + sent / (link.bandwidth * link.allreduce_efficiency)


def all_gather_s(link: LinkSpec, tp_size: int, message_bytes: float) -> float:
    """Time to gather a tensor of `message_bytes` that is split over the ranks (s); 0 for one."""
    if tp_size == 1:
        return 0.0
    sent = (tp_size - 1) / tp_size * message_bytes
    return link.allreduce_latency_s + sent / (link.bandwidth * link.allreduce_efficiency)
