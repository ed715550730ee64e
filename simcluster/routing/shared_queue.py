"""One queue for all instances: a request waits in front of the cluster, not in an instance."""

from __future__ import annotations

from collections.abc import Sequence

from mypy_extensions import mypyc_attr

from simcluster.request import Request
from simcluster.routing.base import InstanceView


@mypyc_attr(allow_interpreted_subclasses=True)
class SharedQueue:
    """Keep requests pending until an instance has room, then take the least loaded such one.

    With one sequence per instance this is the queue of M/M/c.
    """

    def __init__(self) -> None:
        self._last = -1

    def choose(self, request: Request, instances: Sequence[InstanceView], now: float) -> int | None:
        """Return the least loaded index with room; None if there is none."""
        count = len(instances)
        best: int | None = None
        least = -1
        for step in range(1, count + 1):
            index = (self._last + step) % count
            if not instances[index].has_room(request):
                continue
            load = instances[index].load_tokens
            if best is None or load < least:
                best, least = index, load
        if best is not None:
            self._last = best
        return best
