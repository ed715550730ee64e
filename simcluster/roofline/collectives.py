"""The time of a collective inside a tensor-parallel group: a latency plus ring traffic.

An engine with kernels of its own for all-reduces uses them up to a size of the message, where the
GPUs reach one another; everything else goes to the communication library (NCCL), which takes the
fastest of its protocols.

Between data-parallel ranks and experts tokens pass in one of two ways: all tokens go to all ranks
in an all-gather and the results come back in a reduce-scatter, or each token goes to its experts
alone, in an all-to-all by the kernels of DeepEP.
"""

from __future__ import annotations

from math import inf
from typing import Final, NamedTuple

from simcluster.catalog.layers import Experts
from simcluster.catalog.specs import AllReduceTerms, LinkSpec
from simcluster.roofline.layout import Layout, groups_visited

ALL_TO_ALL_LATENCY_S: Final = 30e-6
"""Time of a dispatch or combine of DeepEP beside its bytes (s). With the two shares below it meets
the twelve published times of the low-latency kernels on H800 within 9 % (deepseek-ai/DeepEP,
docs/legacy.md: 128 tokens of 7168 numbers to 8 experts, EP 8 to 256). No time of the normal kernels
was published, only bandwidths: the same latency stands in."""
NETWORK_SHARE: Final = 0.9
"""Share of a NIC's bandwidth that they reach: see there, and 58 and 51 GB/s at EP 32 and 64 of the
normal kernels, of which 1/4 and 1/8 stays in the node: 43.5 and 44.6 of 50 GB/s."""
FABRIC_SHARES: Final = {"low-latency": 0.8, "throughput": 0.68}
"""Shares of NVLink: 160 GB/s of H800's 200 at most, by the same source; normal kernels at EP 8
reach 153 to 158 GB/s, of which 1/8 stays on the GPU. V2 on B200 reaches 726 to 740 of 900: 0.71."""


class ExpertLinks(NamedTuple):
    """Links between the GPUs of an instance whose data-parallel ranks share experts."""

    inside: LinkSpec
    """Between GPUs of a node, per GPU and direction."""
    group: LinkSpec
    """The same for a collective of all GPUs of the instance."""
    between: LinkSpec | None = None
    """Between nodes, per NIC and direction; None where the instance stands on one node."""
    gpus_per_node: int = 1
    """GPUs of the instance on a node."""
    nics_per_gpu: float = 1.0
    """NICs over the GPUs of a node."""


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


def all_to_all_s(links: ExpertLinks, layout: Layout, experts: Experts, copy_bytes: float) -> float:
    """Time to send tokens to their experts, or their results back (s).

    Parameters
    ----------
    links : ExpertLinks
        Between the GPUs.
    layout : Layout
        Their groups, and the kernels: its `all_to_all`.
    experts : Experts
        Each token picks `num_active` different ones, all equally popular.
    copy_bytes : float
        One copy of the tokens that a GPU sends (bytes).

    Notes
    -----
    Low-latency kernels send a copy to every expert of a token. Normal ones send one to every node,
    where it is handed on to every GPU with experts of it. GPUs inside a node and NICs between nodes
    work side by side: the slower of them decides.
    """
    gpus, per_node = layout.num_gpus, links.gpus_per_node
    nodes = gpus // per_node
    if layout.all_to_all == "low-latency":
        inside = experts.num_active * (per_node - 1) / gpus
        between = experts.num_active * (gpus - per_node) / gpus
    else:
        # What arrives over the network is handed on inside the node: by all that is received.
        inside = groups_visited(experts, gpus) * (per_node - 1) / per_node
        between = groups_visited(experts, nodes) * (nodes - 1) / nodes if nodes > 1 else 0.0
    fabric = links.inside.bandwidth * FABRIC_SHARES[layout.all_to_all]
    times = [inside * copy_bytes / fabric]
    if links.between is not None:
        network = links.between.bandwidth * links.nics_per_gpu * NETWORK_SHARE
        times.append(between * copy_bytes / network)
    elif between:
        times.append(inf)
    return ALL_TO_ALL_LATENCY_S + max(times)
