"""Pairs of tokens that attend to each other, against counting them."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from simcluster.catalog.layers import Reach
from simcluster.roofline.attention import twice_pairs_within


@settings(deadline=None)
@given(
    reach=st.builds(Reach, st.integers(1, 40), st.booleans()),
    new=st.integers(0, 100),
    old=st.integers(0, 100),
)
def test_pairs_within_reach_are_those_of_each_token(reach: Reach, new: int, old: int) -> None:
    """Each new token sees itself and what its window or chunk still has."""
    counted = sum(reach.of(old + k + 1) for k in range(new))
    assert twice_pairs_within(reach, new, old, 1.0) / 2 == counted
