"""A router: the better of two instances that are drawn."""

from __future__ import annotations

from collections.abc import Sequence

from simcluster.request import Request
from simcluster.rng import stream
from simcluster.routing import InstanceView


class TwoChoices:
    """Draw two instances and take the one with fewer tokens.

    Almost as good as looking at all of them (Mitzenmacher, "The Power of Two Choices in Randomized
    Load Balancing", IEEE TPDS 2001). The draw depends on the number of the request alone, so that
    two strategies with this router meet the same draws.
    """

    def choose(self, request: Request, instances: Sequence[InstanceView], now: float) -> int | None:
        """Return the index of the less loaded of two."""
        count = len(instances)
        draws = stream(request.request_id, "two-choices")
        first = int(draws.integers(count))
        second = (first + int(draws.integers(1, count)) if count > 1 else first) % count
        return min((first, second), key=lambda index: instances[index].load_tokens)
