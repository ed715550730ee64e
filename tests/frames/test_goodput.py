"""Goodput against cases computed by hand."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simcluster.errors import DataError
from simcluster.frames.goodput import (
    Goodput,
    goodput_error,
    goodput_rps,
    goodput_table,
    mean_attainment,
    representative_rate,
    strategies,
)
from simcluster.testing.examples import examples


@pytest.mark.parametrize(
    ("rates", "attainments", "target", "value", "censored"),
    [
        # (0.96 - 0.9) / (0.96 - 0.86) = 0.6 of the way from 2 to 4
        pytest.param([1, 2, 4], [1.0, 0.96, 0.86], 0.9, 3.2, None, id="between"),
        pytest.param([4, 1, 2], [0.86, 1.0, 0.96], 0.9, 3.2, None, id="any-order"),
        pytest.param([1, 2, 4], [1.0, 0.9, 0.5], 0.9, 2.0, None, id="equal-at-a-grid-point"),
        pytest.param([1, 2, 3, 4], [1.0, 0.9, 0.9, 0.5], 0.9, 3.0, None, id="equal-at-a-plateau"),
        pytest.param([1, 2, 4], [1.0, 0.95, 0.9], 0.9, 4.0, "above", id="equal-at-the-last"),
        pytest.param([1, 2, 4], [1.0, 1.0, 0.95], 0.9, 4.0, "above", id="all-above"),
        pytest.param([2, 3, 4], [0.8, 0.5, 0.2], 0.9, 2.0, "below", id="all-below"),
        pytest.param([2, 3], [0.9, 0.4], 0.9, 2.0, None, id="equal-at-the-first"),
        pytest.param([3], [0.95], 0.9, 3.0, "above", id="single-rate-met"),
        pytest.param([3], [0.85], 0.9, 3.0, "below", id="single-rate-missed"),
        # a lucky point at 3 after the first crossing, half-way from 1 to 2, does not count
        pytest.param([1, 2, 3, 4], [1.0, 0.8, 0.95, 0.1], 0.9, 1.5, None, id="non-monotone"),
        # an unlucky first point: the only downward crossing is half-way from 2 to 3
        pytest.param([1, 2, 3], [0.85, 1.0, 0.8], 0.9, 2.5, None, id="first-point-below"),
        pytest.param([1, 2], [0.5, 0.95], 0.9, 2.0, "above", id="rising"),
        # seeds: means 1.0 and 0.8
        pytest.param([1, 1, 2, 2], [1.0, 1.0, 0.9, 0.7], 0.9, 1.5, None, id="seeds-averaged-first"),
        pytest.param([1, 2], [1.0, 0.98], 0.99, 1.5, None, id="p99"),
    ],
)
def test_goodput_is_the_first_downward_crossing(
    rates: list[float], attainments: list[float], target: float, value: float, censored: str | None
) -> None:
    """Expected values are worked out by hand."""
    result = goodput_rps(rates, attainments, target)
    assert result.value == pytest.approx(value, rel=1e-12)
    assert result.censored == censored


def test_a_mean_over_seeds_that_misses_by_rounding_reaches_the_target() -> None:
    """The mean of 0.85 and 0.95 is 0.9 on paper and a little less in doubles."""
    assert np.mean([0.85, 0.95]) < 0.9
    assert goodput_rps([5, 5], [0.85, 0.95], 0.9) == Goodput(value=5.0, censored="above")


@examples(100)
@given(
    st.lists(st.integers(0, 100), min_size=1, max_size=8),
    st.integers(1, 99),
)
def test_goodput_lies_on_the_grid_and_attainment_there_is_the_target(
    percents: list[int], target_percent: int
) -> None:
    """Reading the attainment curve at an uncensored goodput gives the target back."""
    rates = np.arange(1.0, len(percents) + 1)
    shares, target = np.array(percents) / 100, target_percent / 100
    result = goodput_rps(rates, shares, target)
    assert rates[0] <= result.value <= rates[-1]
    if result.censored is None:
        assert np.interp(result.value, rates, shares) == pytest.approx(target, abs=1e-9)


def test_goodput_does_not_reorder_what_it_was_given() -> None:
    """Callers keep their arrays."""
    rates, shares = np.array([3.0, 1.0, 2.0]), np.array([0.1, 1.0, 0.7])
    goodput_rps(rates, shares, 0.9)
    assert rates.tolist() == [3.0, 1.0, 2.0]
    assert shares.tolist() == [0.1, 1.0, 0.7]


def test_runs_without_an_attainment_are_refused() -> None:
    """A window without requests has no attainment; the message names the rate and the way out."""
    with pytest.raises(DataError, match=r"at 2 requests/s: lower run\.warmup_s"):
        goodput_rps([1, 2], [1.0, np.nan], 0.9)
    with pytest.raises(DataError, match="no runs"):
        goodput_rps([], [], 0.9)
    with pytest.raises(ValueError, match="pair up"):
        goodput_rps([1, 2], [1.0], 0.9)


def test_means_over_seeds_are_per_distinct_rate() -> None:
    """Rates with different numbers of seeds are averaged each by itself."""
    rates, means = mean_attainment([2, 1, 2, 2], [0.3, 1.0, 0.6, 0.9])
    assert rates.tolist() == [1.0, 2.0]
    assert means == pytest.approx([1.0, 0.6])


SWEEP = {
    "strategy": np.array(["wide"] * 4 + ["small"] * 4, dtype=object),
    "rate_rps": np.array([2.0, 4.0, 2.0, 4.0, 2.0, 4.0, 2.0, 4.0]),
    "seed": np.array([0, 0, 1, 1, 0, 0, 1, 1]),
    "num_gpus": np.array([8] * 4 + [4] * 4),
    "mean_gpus": np.array([8.0] * 4 + [4.0] * 4),
    # means over the seeds: wide 1.0 and 0.8, small 0.6 and 0.15
    "slo_attainment": np.array([1.0, 0.7, 1.0, 0.9, 0.5, 0.1, 0.7, 0.2]),
}


@pytest.mark.parametrize("as_frame", [False, True])
def test_table_gives_goodput_per_gpu_and_per_cost(as_frame: bool) -> None:
    """One row per strategy in the order of the sweep; columns and pandas frames alike."""
    table = goodput_table(pd.DataFrame(SWEEP) if as_frame else SWEEP, 0.9, price_per_gpu_hour=2.5)
    assert table["strategy"].tolist() == ["wide", "small"]
    assert table["num_gpus"].tolist() == [8, 4]
    # means 1.0 and 0.8: half-way from 2 to 4; by seed a third of the way, and the whole way
    assert table["goodput_rps"] == pytest.approx([3.0, 2.0])
    assert table["goodput_rps_min"] == pytest.approx([2 + 2 / 3, 2.0])
    assert table["goodput_rps_max"] == pytest.approx([4.0, 2.0])
    assert table["censored"].tolist() == ["", "below"]
    assert table["goodput_rps_per_gpu"] == pytest.approx([3 / 8, 2 / 4])
    # 3 requests/s for an hour on 8 GPUs at 2.5 an hour each: 10800 / 20
    assert table["requests_per_cost"] == pytest.approx([540.0, 720.0])


def test_table_without_a_price_has_no_cost() -> None:
    """An unknown price gives NaN, not a made-up one."""
    assert np.isnan(goodput_table(SWEEP, 0.9)["requests_per_cost"]).all()


PERCENTILES = {
    "strategy": np.array(["one"] * 3, dtype=object),
    "rate_rps": np.array([2.0, 4.0, 6.0]),
    "seed": np.array([0, 0, 0]),
    "num_gpus": np.array([8, 8, 8]),
    "mean_gpus": np.array([8.0, 8.0, 8.0]),
    "ttft_attainment": np.array([1.0, 0.97, 0.67]),
    "tpot_attainment": np.array([1.0, 0.994, 0.974]),
}


def test_the_goodput_of_percentiles_is_where_the_first_target_falls_below_its_share() -> None:
    """TTFT reaches 0.9 until 4 + 0.07 / 0.30 x 2; TPOT 0.99 until 4 + 0.004 / 0.02 x 2."""
    both = {"ttft_attainment": 0.9, "tpot_attainment": 0.99}
    table = goodput_table(PERCENTILES, both)
    assert table["goodput_rps"] == pytest.approx([4.4])
    assert table["first_missed"].tolist() == ["tpot_attainment"]
    assert representative_rate(PERCENTILES, both) == 4.0
    loose = goodput_table(PERCENTILES, {"ttft_attainment": 0.9, "tpot_attainment": 0.97})
    assert loose["goodput_rps"] == pytest.approx([4 + 0.07 / 0.3 * 2])
    assert loose["first_missed"].tolist() == ["ttft_attainment"]
    strict = {"ttft_attainment": 0.9, "tpot_attainment": 0.999}
    assert representative_rate(PERCENTILES, strict) == 2.0
    kept = goodput_table(PERCENTILES, {"ttft_attainment": 0.5, "tpot_attainment": 0.9})
    assert (kept["censored"].tolist(), kept["first_missed"].tolist()) == (["above"], [""])


def test_a_grid_says_how_far_its_goodput_is_to_be_trusted() -> None:
    """Requests that meet their targets by a curve known in closed form, straight in log odds.

    Its goodput at 90 % is 10 by construction. Of 400 grids with 200 to 2,000 requests per run, one
    to six seeds and rates 10 to 40 % apart at least 90 % of the intervals hold it, and they are not
    wider than three times the errors made.
    """
    rng = np.random.default_rng(3)
    inside, widths, errors = 0, [], []
    for _ in range(400):
        num, seeds = int(rng.integers(200, 2000)), int(rng.integers(1, 7))
        ratio, steep = rng.uniform(1.1, 1.4), rng.uniform(4, 25)
        rates = np.repeat(8.0 * rng.uniform(0.8, 1.0) * ratio ** np.arange(6), seeds)
        true = 1 / (1 + np.exp(steep * np.log(rates / 10) - np.log(9)))
        shares = rng.binomial(num, true) / num
        given = np.sqrt(shares * (1 - shares) / num)
        found = goodput_rps(rates, shares, 0.9)
        half = goodput_error(rates, shares, given, np.full(rates.shape, num), 0.9)
        if found.censored:
            assert np.isnan(half)
            continue
        inside += abs(found.value - 10) <= half
        widths.append(half)
        errors.append(found.value - 10)
    assert inside >= 0.9 * len(widths)
    assert np.mean(widths) <= 3 * np.sqrt(np.mean(np.square(errors)))


def test_an_unknown_error_stays_unknown() -> None:
    """Of a folder without the column."""
    assert np.isnan(goodput_table(SWEEP, 0.9)["goodput_rps_error"]).all()
    errors = {**SWEEP, "attainment_error": np.full(8, 0.01), "num_requests": np.full(8, 1000)}
    first, second = goodput_table(errors, 0.9)["goodput_rps_error"].tolist()
    # Half-way from 2 to 4, error of the means 0.01 / sqrt(2) at both, slope 0.1; of chance
    # 2 x 0.005 / 0.1. In log odds the crossing is elsewhere: (8.29 - 2.20) / (8.29 - 1.39).
    odds = np.log(2000.5 / 0.5), np.log(1600.5 / 400.5)
    other = (odds[0] - np.log(9)) / (odds[0] - odds[1])
    assert first == pytest.approx(0.1 + 2 * abs(other - 0.5))
    assert np.isnan(second)


def test_representative_rate_is_the_highest_that_a_strategy_carries() -> None:
    """At that rate the strategies differ: one is just within its targets."""
    assert representative_rate(SWEEP, 0.9) == 2.0
    assert representative_rate(SWEEP, 0.75) == 4.0
    assert representative_rate(SWEEP, 1.01) == 2.0
    assert strategies(SWEEP) == ["wide", "small"]


def test_goodput_shows_its_bound() -> None:
    """A bound must not be read as a value."""
    assert str(Goodput(value=2.0, censored="below")) == "< 2.00"
    assert str(Goodput(value=40.0, censored="above")) == "≥ 40.0"
    assert str(Goodput(value=3.14159)) == "3.14"
