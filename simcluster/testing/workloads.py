"""Workloads written out by hand, for tests."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from simcluster.units import grid_array
from simcluster.workload import Workload
from simcluster.workload.hashes import BlockHashes

_STRIDE = 1 << 20


def workload_of(
    arrival_s: npt.ArrayLike,
    prompt_len: npt.ArrayLike,
    output_len: npt.ArrayLike,
    *,
    rejected: Sequence[bool] | None = None,
    concurrency: int | None = None,
    hashes: BlockHashes | None = None,
) -> Workload:
    """Return the workload with these requests.

    Parameters
    ----------
    arrival_s : array_like of float
        Arrivals (s), sorted, shape ``(num_requests,)``; put on the time grid. Ignored (taken as 0)
        in a closed loop.
    prompt_len, output_len : array_like of int
        Tokens, each >= 1; broadcast to the number of arrivals.
    rejected : sequence of bool, optional
        Which are turned away on arrival; none by default.
    concurrency : int, optional
        Requests in the system at once, for a closed loop.
    hashes : BlockHashes, optional
        Ids of their blocks; see `shared_prefixes`.
    """
    arrivals = grid_array(np.asarray(arrival_s, np.float64))
    if concurrency is not None:
        arrivals = np.zeros_like(arrivals)
    count = len(arrivals)
    return Workload(
        arrival_s=arrivals,
        prompt_len=np.broadcast_to(np.asarray(prompt_len, np.int64), count),
        output_len=np.broadcast_to(np.asarray(output_len, np.int64), count),
        rejected=np.zeros(count, bool) if rejected is None else np.asarray(rejected, bool),
        concurrency=concurrency,
        hashes=hashes,
    )


def shared_prefixes(
    groups: Sequence[int],
    shared_tokens: Sequence[int],
    num_tokens: Sequence[int],
    *,
    tokens_per_id: int = 16,
) -> BlockHashes:
    """Return block ids of requests that begin alike within a group.

    Parameters
    ----------
    groups : sequence of int
        Group of each request, >= 0.
    shared_tokens : sequence of int
        So many tokens at its start are those of the group; the rest is its own.
    num_tokens : sequence of int
        Tokens of each request that have ids: its prompt, or with its answer.
    tokens_per_id : int
        Tokens of a block.
    """
    ids: list[int] = []
    starts = [0]
    for number, (group, shared, tokens) in enumerate(
        zip(groups, shared_tokens, num_tokens, strict=True)
    ):
        blocks = -(-tokens // tokens_per_id)
        common = min(shared, tokens) // tokens_per_id
        ids += range(group * _STRIDE, group * _STRIDE + common)
        own = (len(groups) + max(groups) + 1 + number) * _STRIDE
        ids += range(own + common, own + blocks)
        starts.append(len(ids))
    return BlockHashes.of_ids(
        np.array(ids, np.int64), np.array(starts), np.array(num_tokens), tokens_per_id
    )
