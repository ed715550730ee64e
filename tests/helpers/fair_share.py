"""Max-min fair sharing in plain words: what the engine's incremental one must agree with."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence


def max_min_rates(
    bandwidths: Sequence[float],
    routes: Sequence[tuple[Collection[int], int]],
    demands: Mapping[int, float] | None = None,
) -> list[float]:
    """Max-min fair rate of a flow on each route, by progressive filling.

    The rate of all flows rises until links are full: those that would give their flows the least.
    These flows keep that rate, their bandwidth is taken off the links they cross, and the others
    go on (Bertsekas and Gallager, Data Networks, section 6.5.2).

    Parameters
    ----------
    bandwidths : sequence of float
        Of each link (bytes/s).
    routes : sequence of (collection of int, int)
        Of each route the indices of its links, and the number of flows on it, >= 1.
    demands : mapping of int to float, optional
        By link, what collectives on it ask for (bytes/s): they get it if every flow then still has
        as much as they, else what one more flow would.

    Returns
    -------
    list of float
        Rates (bytes/s).
    """
    rates = [0.0] * len(routes)
    room = list(bandwidths)
    rising = set(range(len(routes)))
    while rising:
        loads = [
            sum(routes[k][1] for k in rising if link in routes[k][0]) for link in range(len(room))
        ]
        levels = [r / load if load else math.inf for r, load in zip(room, loads, strict=True)]
        for link, demand in (demands or {}).items():
            if demand and loads[link]:
                load = loads[link]
                levels[link] = max((room[link] - demand) / load, room[link] / (load + 1))
        level = min(levels)
        full = {link for link, at in enumerate(levels) if at == level}
        stopped = {k for k in rising if full & set(routes[k][0])}
        for k in stopped:
            rates[k] = level
        for link in range(len(room)):
            room[link] -= level * sum(routes[k][1] for k in stopped if link in routes[k][0])
        rising -= stopped
    return rates
