"""Strategies of a goodput search meet the same requests, and are compared on them alone."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest

from helpers.outcomes import outcome_of_odds
from helpers.scenarios import small_scenario
from simcluster.rng import stream
from simcluster.scenario.file import resolve
from simcluster.scenario.scenario import Scenario
from simcluster.studies.goodput import Cell, Outcome, Verdict, find
from simcluster.studies.goodput.by_rate import compare_by_rate
from simcluster.studies.goodput.estimate import Interval, estimate_crossing, logit
from simcluster.studies.goodput.pairs import Compared, compare_verdicts, wanted_sizes
from simcluster.studies.goodput.probe import Probe
from simcluster.studies.goodput.rules import RULES
from simcluster.studies.goodput.search import Stage
from simcluster.studies.goodput.shape import Falls

DOCUMENT = small_scenario({"name": "one", "kind": "nodg"}, {"name": "two", "kind": "nodg"})
SLOPE = 12.0
"""Fall of the log odds of attainment per unit of the logarithm of the rate."""


def outcome(goodput: float, cell: Cell) -> Outcome:
    """Return a run of a strategy whose goodput is known.

    Its requests, drawn from the seed, shift the goodput; the strategy's own part is far smaller.
    """
    scale = math.sqrt(4000 / cell.num_requests)
    common = stream(cell.seed, "requests").standard_normal()
    own = stream(cell.seed, cell.strategy).standard_normal()
    where = math.log(goodput) + scale * (0.05 * common + 0.001 * own)
    odds = logit(0.9) - SLOPE * (math.log(cell.rate_rps) - where)
    return outcome_of_odds(odds)


class Answers:
    """Runs the cells of a search; keeps what it was asked for."""

    def __init__(self, **goodputs: float) -> None:
        self.goodputs = goodputs
        self.asked: list[Cell] = []

    def __call__(self, scenario: Scenario, cells: Sequence[Cell]) -> list[Outcome]:
        """Answer in order."""
        self.asked += cells
        return [outcome(self.goodputs[cell.strategy], cell) for cell in cells]


@pytest.mark.parametrize("seed", range(5))
def test_a_small_difference_is_seen_on_the_same_requests(seed: int) -> None:
    """Of 2 %, with 95 % intervals of each goodput that are wider and overlap."""
    answers = Answers(one=100.0, two=102.0)
    found = find(resolve(DOCUMENT), seed=seed, tolerance=0.05, simulate=answers)
    one, two = (found.verdicts[name].estimate for name in ("one", "two"))
    assert one is not None
    assert two is not None
    assert one.interval.high > two.interval.low, "they overlap"
    (pair,) = found.comparisons()
    assert (pair.first, pair.paired, pair.decided) == ("two", True, True)
    assert pair.ratio.value == pytest.approx(1.02, abs=0.01)
    # A run of the same number is the same requests for both.
    lasts = [found.verdicts[name].stages[-1] for name in ("one", "two")]
    assert sum(c.num_requests or 0 for c in answers.asked) == sum(
        verdict.num_requests for verdict in found.verdicts.values()
    ), "each run once"
    fewer, more = sorted((set(stage.replications) for stage in lasts), key=len)
    assert fewer <= more
    rates = [{s.low.rate_rps, s.high.rate_rps} for s in lasts]
    seeds = [{c.seed for c in answers.asked if c.rate_rps in own} for own in rates]
    assert len(seeds[0] & seeds[1]) == len(fewer)


@pytest.mark.parametrize("seed", range(5))
def test_strategies_are_compared_rate_by_rate_on_the_same_requests(seed: int) -> None:
    """A difference that draws of their own would hide is decided at both goodputs."""
    answers = Answers(one=100.0, two=103.0)
    found = find(resolve(DOCUMENT), seed=seed, tolerance=0.05, simulate=answers)
    before = len(answers.asked)
    (pair,) = compare_by_rate(found, answers)
    assert [point.winner(pair.first, pair.second) for point in pair.at] == ["two", "two"]
    asked = answers.asked[before:]
    draws = {name: sorted(c[1:] for c in asked if c.strategy == name) for name in ("one", "two")}
    assert draws["one"] == draws["two"]
    assert not {c.seed for c in asked} & {c.seed for c in answers.asked[:before]}


def verdict(name: str, goodput: float, size: int, first: int = 1) -> Verdict:
    """Return a search that ended with `size` replications at each of two rates."""
    probes = []
    for side, rate in enumerate((0.97 * goodput, 1.03 * goodput)):
        numbers = tuple(range(first + side, first + 2 * size, 2))
        runs = tuple(outcome(goodput, Cell(name, rate, number, 4000)) for number in numbers)
        probes.append(Probe(rate, 4000, runs, numbers))
    low, high = probes
    numbers = low.replications + high.replications
    estimate = estimate_crossing(low.counts, high.counts, 0.9, numbers)
    stage = Stage(low=low, high=high, estimate=estimate)
    return Verdict(status="found", estimate=estimate, probes=(), stages=(stage,))


@pytest.mark.parametrize("size", [5, 8, 12])
def test_the_ratio_of_a_pair_is_that_of_the_goodputs(size: int) -> None:
    """However many replications they share: what they share cancels, the rest does not."""
    one = verdict("one", 100.0, 8)
    two = verdict("two", 115.0, size)
    apart = verdict("two", 115.0, size, first=1000)
    ratios = {}
    for name, other in (("shared", two), ("apart", apart)):
        pair = compare_verdicts("one", one, "two", other)
        assert pair is not None
        assert (pair.first, pair.paired) == ("two", name == "shared")
        values = other.goodput, one.goodput
        assert values[0] is not None
        assert values[1] is not None
        assert pair.ratio.value == pytest.approx(values[0].value / values[1].value)
        ratios[name] = math.log(pair.ratio.high / pair.ratio.low)
    assert ratios["shared"] < (0.2 if size == 8 else 0.9) * ratios["apart"]


@pytest.mark.parametrize("seed", range(4))
def test_open_pairs_get_more_replications_until_they_are_settled(seed: int) -> None:
    """Alike to 0.1 %: within the indifference; to 5 %, at a wide tolerance: decided."""
    answers = Answers(one=100.0, two=100.1, three=105.0)
    document = small_scenario(*({"name": n, "kind": "nodg"} for n in ("one", "two", "three")))
    noisy = Noisy(answers)
    found = find(resolve(document), seed=seed, tolerance=0.1, simulate=noisy)
    pairs = {(p.first, p.second): p for p in found.comparisons()}
    for pair in pairs.values():
        assert pair.decided or pair.alike, str(pair)
    close = next(p for names, p in pairs.items() if "three" not in names)
    assert close.alike
    assert "within 3 %" in str(close)


@pytest.mark.parametrize(
    ("size", "half", "wanted"),
    [
        (8, 0.05, 32),  # 63 by these few: first as many as tell
        (8, 0.08, None),  # 162: three times what they may have
        (32, 0.024, 59),
        (32, 0.0275, 64),  # 77: an estimate too, and near
        (32, 0.03, None),  # 91
        (32, 0.017, None),  # decided
    ],
)
def test_an_open_pair_gets_what_would_settle_it(size: int, half: float, wanted: int | None) -> None:
    """Of 2 %: size * (half / (0.9 * ln 1.02)) ** 2 replications, on paper."""
    names = ("one", "two")
    verdicts = {name: verdict(name, 100.0, size) for name in names}
    ratio = Interval(value=1.02, low=1.02 * math.exp(-half), high=1.02 * math.exp(half))
    pair = Compared(
        first="one",
        second="two",
        ratio=ratio,
        difference_rps=ratio,
        p_value=0.1,
        paired=True,
        indifference=0.03,
    )
    sizes = {} if wanted is None else dict.fromkeys(names, wanted)
    assert wanted_sizes(verdicts, [pair], RULES) == sizes


class Noisy:
    """Answers whose strategies differ by chance of their own, beside what the requests do."""

    def __init__(self, answers: Answers) -> None:
        self.answers = answers

    def __call__(self, scenario: Scenario, cells: Sequence[Cell]) -> list[Outcome]:
        """Answer in order."""
        came = []
        for cell in cells:
            own = 0.03 * stream(cell.seed, f"noise of {cell.strategy}").standard_normal()
            goodput = self.answers.goodputs[cell.strategy] * math.exp(own)
            came.append(outcome(goodput, cell))
        return came


def test_a_plan_that_collapses_is_compared_by_its_bounds() -> None:
    """Better or worse only where the whole of recommended rate to first collapse is."""
    healthy = verdict("one", 100.0, 8)
    assert healthy.goodput is not None

    def collapsing(rate: float) -> Verdict:
        probe = Probe(rate, 4000, (outcome(100.0, Cell("two", rate, 1, 4000)),), (1,))
        above = Falls(
            rate_rps=1.05 * rate, num_runs=8, num_fallen=2, num_recovered=0, healthy_s=3600.0
        )
        return Verdict(
            status="collapses", estimate=None, probes=(), falls=(above,), recommended=probe
        )

    worse, open_, better = (
        compare_verdicts("one", healthy, "two", collapsing(rate)) for rate in (80, 97, 120)
    )
    assert worse is not None
    assert open_ is not None
    assert better is not None
    assert (worse.first, worse.decided) == ("one", True)
    assert (open_.decided, open_.alike) == (False, False)
    assert (better.first, better.decided) == ("two", True)
    assert better.ratio.low == pytest.approx(120 / healthy.goodput.high)
    assert math.isnan(better.p_value)
    assert "different requests" not in str(better)
