"""The instance with the fewest tokens to its name."""

from __future__ import annotations

from collections.abc import Sequence

from mypy_extensions import mypyc_attr

from simcluster.request import Request
from simcluster.routing.base import InstanceView


@mypyc_attr(allow_interpreted_subclasses=True)
class LeastLoaded:
    """Give each request to the instance with the fewest waiting and running tokens.

    Among equals the first after the one chosen last gets it: a fixed order would feed the first
    instance of an idle cluster only.
    """

    def __init__(self) -> None:
        self._last = -1

    def choose(self, request: Request, instances: Sequence[InstanceView], now: float) -> int | None:
        """Return the index of the least loaded instance."""
        first = (self._last + 1) % len(instances)
        best, least = -1, -1
        for index in (*range(first, len(instances)), *range(first)):
            load = instances[index].load_tokens
            if load < least or best < 0:
                best, least = index, load
                if load == 0:
                    break
        self._last = best
        return best
