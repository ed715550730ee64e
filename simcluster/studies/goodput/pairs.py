"""Two strategies of a search compared, whatever their verdicts are."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping

from simcluster.studies.goodput.estimate import Compared, compare
from simcluster.studies.goodput.search import Verdict


def compare_verdicts(first: str, one: Verdict, second: str, other: Verdict) -> Compared | None:
    """Compare the goodputs of two strategies; None where one of them has none.

    Notes
    -----
    Replication by replication on the last final stage that both went through, on the same
    requests. If there is none, their goodputs are compared as independent estimates.
    """
    if one.estimate is None or other.estimate is None:
        return None
    shared = [
        (a.estimate, b.estimate)
        for a in one.stages
        for b in other.stages
        if a.is_final and b.is_final and a.replications == b.replications
    ]
    for ours, theirs in reversed(shared):
        if ours is not None and theirs is not None:
            return compare(first, ours, second, theirs)
    return compare(first, one.estimate, second, other.estimate, paired=False)


def compare_all(verdicts: Mapping[str, Verdict]) -> list[Compared]:
    """Compare every pair of strategies that have a goodput, the best first."""

    def falling(name: str) -> float:
        estimate = verdicts[name].estimate
        return math.inf if estimate is None else -estimate.log_rate

    pairs = (
        compare_verdicts(first, verdicts[first], second, verdicts[second])
        for first, second in itertools.combinations(verdicts, 2)
    )
    return sorted(
        (pair for pair in pairs if pair is not None),
        key=lambda pair: (falling(pair.first), falling(pair.second)),
    )
