"""Quality of routed answers: random and oracle routers in closed form, noisy ones by drawing."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simcluster import catalog
from simcluster.catalog import Catalog, store
from simcluster.errors import ConfigError, DataError
from simcluster.quality import QualityCurve, chosen_models, curve
from simcluster.quality.settings import (
    AbilitiesQuality,
    CsvQuality,
    MeasuredQuality,
    PointsQuality,
)
from simcluster.testing.examples import examples

BENCHMARKS = catalog.names("quality")
COUNTS = st.tuples(*[st.integers(1, 500)] * 4)
SHARES = st.floats(0, 1)


def routed(where: QualityCurve, strong_share: float) -> float:
    """Quality at a load fraction of the strong model of two."""
    return float(where.quality([1 - strong_share, strong_share]))


@pytest.mark.parametrize(
    ("name", "weak", "strong"), [("mmlu-routellm", 0.681, 0.806), ("gsm8k-routellm", 0.638, 0.857)]
)
def test_accuracies_are_those_of_the_counts(name: str, weak: float, strong: float) -> None:
    """The published accuracies of the two models alone."""
    alone = MeasuredQuality(benchmark=name).curve().alone
    assert alone == pytest.approx([weak, strong], abs=6e-4)


@given(COUNTS, SHARES)
@examples(100)
def test_a_random_router_is_a_straight_line(counts: tuple[int, ...], share: float) -> None:
    """Each query gains the mean gain."""
    both, only_strong, only_weak, _ = counts
    total = sum(counts)
    expected = (both + only_weak + share * (only_strong - only_weak)) / total
    assert routed(curve.noisy(*counts, 0.0), share) == pytest.approx(expected, abs=1e-12)


@given(COUNTS, SHARES)
@examples(100)
def test_an_oracle_sends_first_who_gains_and_last_who_loses(
    counts: tuple[int, ...], share: float
) -> None:
    """Quality rises one for one, stays, and falls one for one."""
    both, only_strong, only_weak, _ = counts
    total = sum(counts)
    gained = min(share, only_strong / total)
    lost = max(0.0, share - (1 - only_weak / total))
    expected = (both + only_weak) / total + gained - lost
    assert routed(curve.oracle(*counts), share) == pytest.approx(expected, abs=1e-9)


@given(COUNTS, SHARES, st.floats(0.05, 5), st.floats(0.05, 5))
@examples(100)
def test_a_noisy_router_lies_between_and_rises_with_its_separation(
    counts: tuple[int, ...], share: float, one: float, other: float
) -> None:
    """More signal never hurts."""
    worse, better = sorted((one, other))
    values = [
        routed(where, share)
        for where in (
            curve.noisy(*counts, 0.0),
            curve.noisy(*counts, worse),
            curve.noisy(*counts, better),
            curve.oracle(*counts),
        )
    ]
    # The curve is linear between its 2001 levels.
    assert np.all(np.diff(values) > -1e-4)


def test_a_noisy_router_is_what_drawing_gives() -> None:
    """Second implementation: draw gains and noise, sort by score, answer."""
    counts, separation = (747, 383, 95, 94), 0.8
    rng = np.random.default_rng(1)
    outcome = np.repeat(np.arange(4), np.array(counts) * 300)
    weak, strong = np.isin(outcome, [0, 2]), np.isin(outcome, [0, 1])
    score = separation * (strong.astype(float) - weak) + rng.standard_normal(len(outcome))
    order = np.argsort(score)
    where = curve.noisy(*counts, separation)
    for share in (0.1, 0.3, 0.5, 0.8):
        cut = round((1 - share) * len(order))
        drawn = (weak[order[:cut]].sum() + strong[order[cut:]].sum()) / len(order)
        assert routed(where, share) == pytest.approx(drawn, abs=3e-3)


@pytest.mark.parametrize("name", BENCHMARKS)
def test_the_default_noise_reaches_the_published_point(name: str) -> None:
    """The calibrated router keeps what the published one keeps, at its share of strong calls."""
    measured = catalog.quality(name)
    where = MeasuredQuality(benchmark=name).curve()
    kept = routed(where, measured.strong_share) / where.alone[1]
    assert kept == pytest.approx(measured.kept_quality, abs=1e-6)
    random = MeasuredQuality(benchmark=name, router="random").curve()
    assert routed(where, measured.strong_share) > routed(random, measured.strong_share)


CURVES = {
    "oracle": curve.oracle(5, 4, 2, 1),
    "noisy": curve.noisy(5, 4, 2, 1, 1.1),
    "points": curve.from_points([(0, 0.845), (0.27, 0.87), (0.7, 0.91), (1, 0.951)]),
    "abilities": curve.from_abilities([0.4, 0.6, 0.9], 1.5),
}


@pytest.mark.parametrize("name", CURVES)
def test_the_mean_of_what_requests_expect_is_the_quality(name: str) -> None:
    """What stands in the requests frame adds up to the curve the planner uses."""
    where = CURVES[name]
    scores = (np.arange(100_000) + 0.5) / 100_000
    expected = where.expected(scores)
    assert expected.min() >= -1e-12
    assert expected.max() <= 1 + 1e-12
    for cuts in ([1.0, 0.0], [0.0, 1.0], [0.3, 0.7], [0.85, 0.15]):
        fractions = [*cuts, *[0.0] * (where.num_models - 2)]
        chosen = chosen_models(scores, fractions)
        mean = expected[np.arange(len(scores)), chosen].mean()
        assert mean == pytest.approx(float(where.quality(fractions)), abs=1e-4)
        assert np.bincount(chosen, minlength=where.num_models) / len(scores) == pytest.approx(
            fractions, abs=1e-4
        )


def test_points_are_on_their_curve() -> None:
    """Two published points of Llama-3.1-8B and 70B."""
    where = CURVES["points"]
    assert where.quality([[0.73, 0.27], [0.3, 0.7]]) == pytest.approx([0.87, 0.91])
    assert where.least_strong_share(0.91) == pytest.approx(0.7)
    assert where.least_strong_share(0.5) == 0
    with pytest.raises(ValueError, match="no share"):
        where.least_strong_share(0.96)


def test_abilities_are_the_accuracies_alone_and_order_the_models() -> None:
    """The probit model's mean over difficulties is the accuracy it was given."""
    where = curve.from_abilities([0.4, 0.6, 0.9], 1.5)
    assert where.alone == pytest.approx([0.4, 0.6, 0.9])
    easy, hard = where.expected(np.array([0.05, 0.95]))
    assert np.all(easy > hard)
    assert np.all(np.diff(easy) > 0)
    # Phi(a - b z) at the median difficulty z = 0.
    a = np.sqrt(1 + 1.5**2) * curve.normal_quantile(np.array([0.6]))
    assert where.expected(np.array([0.5]))[0, 1] == pytest.approx(curve.normal_cdf(a)[0], abs=5e-3)


def test_the_best_thresholds_are_those_of_trying_all() -> None:
    """Over a grid of fractions of three models."""
    where = curve.from_outcomes(
        np.arange(12.0) / 12, np.random.default_rng(3).integers(0, 2, (12, 3)).astype(float)
    )
    tries = [
        float(where.quality([a / 12, b / 12, 1 - (a + b) / 12]))
        for a, b in product(range(13), range(13))
        if a + b <= 12
    ]
    best, fractions = where.best()
    assert best == pytest.approx(max(tries))
    assert float(where.quality(fractions)) == pytest.approx(best)


def test_counts_of_ones_own_are_those_of_the_catalogue_they_are_looked_up_in() -> None:
    """Under the name of packaged ones, which stay what they are elsewhere."""
    (row,) = (r for r in store.packaged("quality") if r["name"] == "gsm8k-routellm")
    counts = {"both_correct": 3, "only_strong_correct": 5, "only_weak_correct": 1}
    mine = Catalog((("quality", {**row, **counts, "neither_correct": 1}),))
    named = MeasuredQuality(benchmark="gsm8k-routellm", router="oracle")
    packaged = list(named.curve().alone)
    assert list(named.with_entries(mine).curve().alone) == pytest.approx([0.4, 0.8])
    assert list(named.curve().alone) == packaged != pytest.approx([0.4, 0.8])


def write(path: Path, text: str) -> str:
    """Write a CSV file and return its name."""
    path.write_text(text)
    return str(path)


def test_a_csv_is_sorted_by_score_and_counted(tmp_path: Path) -> None:
    """By hand: five queries, two of equal score."""
    text = "score,weak_correct,strong_correct\n.9,0,1\n.1,1,1\n.5,1,0\n.5,0,1\n.7,0,1\n"
    where = CsvQuality(path=write(tmp_path / "q.csv", text)).curve()
    assert where.alone == pytest.approx([0.4, 0.8])
    assert routed(where, 0.4) == pytest.approx(0.8)  # weak: .1 and one of the two at .5
    assert routed(where, 0.2) == pytest.approx(0.6)
    # Half of a tie is half of its sums.
    assert routed(where, 0.6) == pytest.approx((1 + 0.5 + 0.5 + 1 + 1) / 5)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("score,weak_correct\n.1,1\n", "has no column strong_correct"),
        ("a,b,c\n1,1,1\n", "no column score or weak_correct or strong_correct"),
        ("score,weak_correct,strong_correct\n.1,1,1\nx,1,1\n", "row 2: score = 'x' is not a num"),
        ("score,weak_correct,strong_correct\n1.5,1,1\n", "row 1: score = '1.5' is out of range"),
        ("score,weak_correct,strong_correct\n.5,-1,1\n", "row 1: weak_correct = '-1' is out of"),
        ("score,weak_correct,strong_correct\n.5,1\n", "row 1: strong_correct = None is not a num"),
        ("score,weak_correct,strong_correct\nnan,1,1\n", "row 1: score = 'nan' is not a number"),
        ("score,weak_correct,strong_correct\n", "holds no rows"),
        ("", "has no column score"),
    ],
)
def test_bad_files_are_refused_with_the_row(tmp_path: Path, text: str, message: str) -> None:
    """One line that says where."""
    with pytest.raises(DataError, match=message):
        CsvQuality(path=write(tmp_path / "q.csv", text)).curve()


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    """By name."""
    with pytest.raises(DataError, match="cannot be read"):
        CsvQuality(path="none.csv").with_base(tmp_path).curve()


@pytest.mark.parametrize(
    ("points", "message"),
    [
        (((0.1, 0.5), (1, 0.7)), "must rise from 0 to 1"),
        (((0, 0.5), (0.5, 0.6), (0.5, 0.65), (1, 0.7)), "must rise from 0 to 1"),
        (((0, 0.1), (0.1, 0.6), (1, 0.7)), "no request can gain more"),
        (((0, 8.1), (1, 8.5)), "divided by 10"),
    ],
)
def test_impossible_points_are_refused(
    points: tuple[tuple[float, float], ...], message: str
) -> None:
    """A tenth of the requests cannot gain half."""
    with pytest.raises(ConfigError, match=message):
        PointsQuality(points=points)


def test_abilities_must_rise() -> None:
    """Models stand from the weakest to the strongest."""
    with pytest.raises(ConfigError, match="must rise"):
        AbilitiesQuality(accuracies=(0.7, 0.5))


@pytest.mark.parametrize("rho", [-0.6, 0.0, 0.6])
def test_difficulty_may_go_with_length(rho: float) -> None:
    """Scores stay uniform; the correlation of normal scores is the one asked for."""
    rng = np.random.default_rng(0)
    prompt, output = rng.permutation(np.arange(1, 20_001)), np.ones(20_000, dtype=np.int64)
    quality = AbilitiesQuality(accuracies=(0.5, 0.6), length_correlation=rho)
    scores = quality.draw(prompt, output, seed=1)
    assert np.quantile(scores, [0.1, 0.5, 0.9]) == pytest.approx([0.1, 0.5, 0.9], abs=0.015)
    rank = curve.normal_quantile((prompt - 0.5) / 20_000)
    assert np.corrcoef(rank, curve.normal_quantile(scores))[0, 1] == pytest.approx(rho, abs=0.025)
