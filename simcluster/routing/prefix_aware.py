"""The instance that has most of the prompt in its cache, unless others have less to do."""

from __future__ import annotations

from collections.abc import Sequence

from mypy_extensions import mypyc_attr

from simcluster.request import Request
from simcluster.routing.base import InstanceView


@mypyc_attr(allow_interpreted_subclasses=True)
class PrefixAware:
    """Weigh the cached prefix of a request against the load of the instance that has it.

    The instance with the highest ``weight * cached tokens - load tokens`` gets the request; among
    equals the first after the one chosen last. Where nothing is cached this is `LeastLoaded`.

    Parameters
    ----------
    weight : float
        Tokens of load that one cached token outweighs, >= 0; 0 for load alone.

    Notes
    -----
    The cost function of NVIDIA Dynamo's KV router, which adds the blocks left to prefill, times a
    weight, and the blocks in use, with the signs turned and the length of the prompt, the same for
    all, left out.
    """

    def __init__(self, weight: float = 1.0) -> None:
        self._weight = weight
        self._last = -1

    def choose(self, request: Request, instances: Sequence[InstanceView], now: float) -> int | None:
        """Return the index of the instance with the best balance."""
        count = len(instances)
        best, most = -1, 0.0
        for step in range(1, count + 1):
            index = (self._last + step) % count
            instance = instances[index]
            score = self._weight * instance.cached_tokens(request) - instance.load_tokens
            if best < 0 or score > most:
                best, most = index, score
        self._last = best
        return best
