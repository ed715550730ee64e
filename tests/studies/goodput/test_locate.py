"""Walking from rate to rate to where attainment crosses a target, on curves that are known."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simcluster.studies.goodput.locate import Bracket, locate
from simcluster.studies.goodput.rules import RULES, Walk
from simcluster.studies.rank.race import WALK

PLAIN = Walk(step=2.0, far_step=3.0, far=1.0, growth=1.5, margin=0.1)
TARGET = math.log(9.0)


@dataclass(frozen=True)
class Seen:
    """A run whose attainment is known."""

    rate_rps: float
    log_odds: float


Curve = Callable[[float], float]
"""Log odds of attainment by the logarithm of the rate."""


def walked(
    curve: Curve, guess_rps: float, walk: Walk = PLAIN, *, near: float = 1.05, most: int = 200
) -> tuple[Bracket[Seen], list[float]]:
    """Return the bracket that a walk ends with, and the rates that it went through."""
    rates: list[float] = []

    def look(rate_rps: float) -> Generator[float, Seen, Seen]:
        rates.append(rate_rps)
        return (yield rate_rps)

    def ends(known: Bracket[Seen]) -> bool:
        return known.gap <= math.log(near) or len(rates) >= most

    going = locate(guess_rps, TARGET, look, ends, walk)
    try:
        rate = next(going)
        while True:
            rate = going.send(Seen(rate, curve(math.log(rate))))
    except StopIteration as end:
        return end.value, rates


def line(goodput_rps: float, slope: float) -> Curve:
    """Return log odds that fall straight through the target at a goodput."""
    return lambda x: TARGET - slope * (x - math.log(goodput_rps))


@given(
    st.floats(0.01, 1000.0),
    st.floats(0.5, 200.0),
    st.floats(-6.0, 6.0),
    st.sampled_from([PLAIN, RULES.walk, WALK]),
)
@settings(deadline=None)
def test_the_crossing_lies_between_the_two_rates(
    goodput_rps: float, slope: float, off: float, walk: Walk
) -> None:
    """From any guess, on any straight line, by the walks that searches and races use."""
    guess = goodput_rps * math.exp(off)
    found, _ = walked(line(goodput_rps, slope), guess, walk)
    assert found.low is not None
    assert found.high is not None
    assert found.low.rate_rps <= goodput_rps * (1 + 1e-9)
    assert found.high.rate_rps >= goodput_rps * (1 - 1e-9)
    assert found.gap <= math.log(1.05)
    assert found.crossing_rps(TARGET) == pytest.approx(goodput_rps)
    assert found.slope == pytest.approx(slope)


def test_steps_are_those_of_the_walk() -> None:
    """Upwards near and far from the target; downwards growing, squared far from it."""
    _, rates = walked(lambda x: TARGET + (5.0 if x < math.log(50.0) else 0.5), 1.0, most=8)
    assert rates == pytest.approx([1, 3, 9, 27, 81, 162, 324, 648])  # from 50 on it is near
    _, rates = walked(lambda _: TARGET - 0.5, 1.0, most=4)
    assert rates == pytest.approx([1, 1 / 2, 1 / (2 * 3), 1 / (2 * 3 * 4.5)])
    _, rates = walked(lambda _: TARGET - 5.0, 1.0, most=4)
    # 3 is the far step, but for the squares of 2, 3 and 4.5, which are larger.
    assert rates == pytest.approx([1, 1 / 4, 1 / (4 * 9), 1 / (4 * 9 * 20.25)])


def test_far_below_the_guess_rates_fall_by_leaps() -> None:
    """Where the first guess was no guess."""
    walk = Walk(step=2.0, far=9.0, leap=10.0, leap_below=0.2, margin=0.1)
    _, rates = walked(lambda _: TARGET - 5.0, 8.0, walk, most=6)
    assert rates == pytest.approx([8, 4, 2, 1, 0.1, 0.01])


def test_the_next_rate_keeps_off_both_ends_and_halves_a_steep_fall() -> None:
    """A line through two runs says little beside one of them, and nothing across a cliff."""
    near_high = Bracket(Seen(1.0, TARGET + 9.0), Seen(math.e, TARGET - 0.1))
    assert near_high.crossing_rps(TARGET) == pytest.approx(math.exp(9.0 / 9.1))
    assert near_high.crossing_rps(TARGET, margin=0.2) == pytest.approx(math.exp(0.8))
    cliff = Walk(step=math.e, far=99.0, margin=0.2, straight=5.0)
    _, rates = walked(lambda x: TARGET + (9.0 if x < 1.5 else -0.1), 1.0, cliff, most=4)
    assert [math.log(rate) for rate in rates] == pytest.approx([0.0, 1.0, 2.0, 1.5])


def test_a_bracket_that_is_open_has_no_slope() -> None:
    """Nor has one whose attainment does not fall."""
    low = Seen(1.0, 3.0)
    assert not Bracket(low).is_closed
    assert math.isinf(Bracket(low).gap)
    assert math.isnan(Bracket(low).slope)
    assert math.isnan(Bracket(low, Seen(2.0, 3.0)).slope)
