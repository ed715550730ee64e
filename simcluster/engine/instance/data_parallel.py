"""An instance with attention data parallelism: ranks with sequences of their own, in lock-step."""

from __future__ import annotations

from typing import Final

from simcluster.engine.instance.instance import Instance
from simcluster.engine.instance.pipelined import PipelinedInstance

WAITING_WEIGHT: Final = 4
"""Requests in a batch that one waiting request counts for (vLLM,
``DPLBAsyncMPClient.get_core_engine_for_request``: ``waiting * 4 + running``)."""


class DataParallelInstance(PipelinedInstance):
    """One copy of the experts, and of everything else one per rank.

    Each rank is a lane with a scheduler and KV blocks of its own; their steps are in lock-step
    (`LockStep`). A request goes to the rank with the fewest requests, those that wait counted
    fourfold, of equals to the first, as vLLM's internal load balancer does. Counts are those of the
    last step boundary; vLLM's client has those of the last 100 ms and what it sent since.
    """

    @property
    def _emptiest(self) -> Instance:
        return min(self.lanes, key=_requests)


def _requests(rank: Instance) -> int:
    scheduler = rank.scheduler
    return WAITING_WEIGHT * scheduler.num_waiting + scheduler.num_running
