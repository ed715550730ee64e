"""Pairs of finalists, by the goodputs that the table has."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final

from simcluster.studies.goodput import Compared, Verdict, compare
from simcluster.studies.goodput.pairs import compare_all

_SAME: Final = 1e-3  # difference of two logarithms that no table shows


def compare_settled(verdicts: Mapping[str, Verdict]) -> list[Compared]:
    """Compare every pair of finalists that have a goodput, the best first.

    Notes
    -----
    `compare_all` takes the last replications that both went through, and one of them may have gone
    on: the ratio is then not that of their two goodputs. Such a pair is compared by these goodputs,
    as independent estimates. That is the wider interval: what replications they share makes the
    difference surer than it says.
    """
    return [_consistent(pair, verdicts) for pair in compare_all(verdicts)]


def _consistent(pair: Compared, verdicts: Mapping[str, Verdict]) -> Compared:
    one, other = verdicts[pair.first].estimate, verdicts[pair.second].estimate
    assert one is not None, "who is compared has a goodput"
    assert other is not None, "who is compared has a goodput"
    if abs(math.log(pair.ratio.value) - (one.log_rate - other.log_rate)) <= _SAME:
        return pair
    return compare(pair.first, one, pair.second, other, paired=False)
