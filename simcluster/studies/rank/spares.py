"""How many spare instances a plan needs."""

from __future__ import annotations

import bisect
import math
from typing import Final

from simcluster.errors import ConfigError
from simcluster.scenario.rank_table import RankTable

_MOST: Final = 1000  # spares: more are no plan


def num_spares(num_needed: int, each: float, wanted: float) -> int:
    """Return the least number of spare instances with which enough are up.

    Parameters
    ----------
    num_needed : int
        Instances that must be up, >= 1.
    each : float
        Share of the time that an instance is up, above 0 and below 1.
    wanted : float
        Share of the time in which at least `num_needed` must be up, above 0 and below 1.

    Returns
    -------
    int
        Least s with P(X >= num_needed) >= wanted, X binomial over num_needed + s instances: each is
        up or down by itself.

    Raises
    ------
    ConfigError
        If a thousand are not enough.

    Notes
    -----
    >>> num_spares(1, 0.9, 0.99), num_spares(8, 0.999, 0.999)
    (1, 1)
    """
    counts = range(_MOST + 1)
    spares = bisect.bisect_left(counts, wanted, key=lambda n: _enough_up(num_needed, n, each))
    if spares in counts:
        return spares
    raise ConfigError(
        "rank.availability",
        wanted,
        f"needs over {_MOST} spare instances for {num_needed} that are up {each:.6g} of the time",
        "Lower it, or raise rank.instance_availability.",
    )


def _enough_up(num_needed: int, spares: int, each: float) -> float:
    """Return the probability that at most `spares` of all instances are down."""
    total = num_needed + spares
    return math.fsum(
        math.comb(total, lost) * (1 - each) ** lost * each ** (total - lost)
        for lost in range(spares + 1)
    )


def check(table: RankTable) -> None:
    """Refuse keys of a need that do not go together.

    Raises
    ------
    ConfigError
        If so.
    """
    given = {
        "headroom": table.headroom or None,
        "spare_instances": table.spare_instances,
        "availability": table.availability,
        "instance_availability": table.instance_availability,
    }
    if table.need_rps is None:
        for key, value in given.items():
            if value is not None:
                rule = "belongs to a need, and rank.need_rps is not given"
                raise ConfigError(
                    f"rank.{key}", value, rule, "Give rank.need_rps, or leave it out."
                )
        return
    if table.mode == "bestserve":
        rule = "goodputs by BestServe's estimator have no interval that a need could rest on"
        raise ConfigError("rank.mode", table.mode, rule, 'Use rank.mode = "simulate".')
    if (table.availability is None) != (table.instance_availability is None):
        one, other = "availability", "instance_availability"
        if table.availability is None:
            one, other = other, one
        rule = f"needs rank.{other}: how often an instance is up is nothing that is known here"
        raise ConfigError(f"rank.{one}", given[one], rule, f"Give rank.{other}, or leave it out.")
    if table.availability is not None and table.spare_instances is not None:
        rule = "rank.availability says how many spares there are"
        remedy = "Give one of them."
        raise ConfigError("rank.spare_instances", table.spare_instances, rule, remedy)


def spares_of(table: RankTable, num_instances: int) -> int:
    """Return how many spares a plan of a number of instances has."""
    if table.availability is None or table.instance_availability is None:
        return table.spare_instances or 0
    return num_spares(num_instances, table.instance_availability, table.availability)


def in_words(table: RankTable) -> str:
    """Return what is held against lost instances."""
    if table.availability is not None and table.instance_availability is not None:
        return (
            f"spares so that enough instances are up {100 * table.availability:.6g} % of the time, "
            f"each being up {100 * table.instance_availability:.6g} % of it by itself"
        )
    match table.spare_instances or 0:
        case 0:
            return "no spare instance"
        case 1:
            return "one spare instance"
        case num:
            return f"{num} spare instances"
