"""The time of a collective inside a tensor-parallel group: a latency plus ring traffic.

An engine with kernels of its own for all-reduces uses them up to a size of the message, where the
GPUs reach one another; everything else goes to the communication library (NCCL), which takes the
fastest of its protocols.
"""

from __future__ import annotations

from simcluster.catalog.specs import AllReduceTerms, LinkSpec


def library_terms(link: LinkSpec, tp_size: int) -> tuple[AllReduceTerms, ...]:
    """Return the protocols of the communication library over `tp_size` GPUs.

    Where world sizes were measured one by one, the largest that is not above `tp_size` counts, or
    the smallest if all are above. Otherwise one latency and one efficiency hold for all.
    """
    if not link.allreduce_terms:
        return (
            AllReduceTerms(
                tp_size=tp_size,
                latency_s=link.allreduce_latency_s,
                efficiency=link.allreduce_efficiency,
            ),
        )
    size = min(
        (known.tp_size for known in link.allreduce_terms),
        key=lambda known: (known > tp_size, abs(known - tp_size)),
    )
    return tuple(known for known in link.allreduce_terms if known.tp_size == size)


def all_reduce_s(
    link: LinkSpec, tp_size: int, message_bytes: float, *, own_kernels: bool = True
) -> float:
    """Time of an all-reduce (s); 0 in a group of one.

    Parameters
    ----------
    link : LinkSpec
        Fabric between the ranks, per GPU and direction.
    tp_size : int
        Ranks of the group.
    message_bytes : float
        Size of the tensor that every rank holds (bytes).
    own_kernels : bool
        The engine has all-reduces of its own (`EngineProfile.own_allreduce`).

    Notes
    -----
    In a ring each rank sends ``2 (t - 1) / t`` of the tensor, in a reduce-scatter and an
    all-gather. Kernels that send more, such as those that read the tensor of every other rank at
    once, have a lower efficiency in these units.
    """
    if own_kernels:
        for terms in link.own_allreduce_terms:
            if terms.tp_size == tp_size and message_bytes < terms.below_bytes:
                return _ring_s(link, (terms,), tp_size, 2.0 * message_bytes)
    return _ring_s(link, library_terms(link, tp_size), tp_size, 2.0 * message_bytes)


def all_gather_s(link: LinkSpec, tp_size: int, message_bytes: float) -> float:
    """Time to gather a tensor of `message_bytes` that is split over the ranks (s); 0 for one."""
    return _ring_s(link, library_terms(link, tp_size), tp_size, message_bytes)


def _ring_s(
    link: LinkSpec, choices: tuple[AllReduceTerms, ...], tp_size: int, passed_bytes: float
) -> float:
    """Time to pass all but one share of `passed_bytes` around the ring, by the best choice (s)."""
    if tp_size == 1:
        return 0.0
    sent = (tp_size - 1) / tp_size * passed_bytes
    return min(terms.latency_s + sent / (link.bandwidth * terms.efficiency) for terms in choices)
