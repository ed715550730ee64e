"""Strategies of a goodput search meet the same requests, and are compared on them alone."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import pytest

from helpers.outcomes import outcome_of_odds
from helpers.scenarios import small_scenario
from simcluster.rng import stream
from simcluster.scenario.file import resolve
from simcluster.scenario.scenario import Scenario
from simcluster.studies.goodput import Cell, Found, Outcome, Settings, Verdict, find
from simcluster.studies.goodput.by_rate import compare_by_rate
from simcluster.studies.goodput.estimate import estimate_crossing, logit
from simcluster.studies.goodput.pairs import compare_verdicts
from simcluster.studies.goodput.probe import Probe
from simcluster.studies.goodput.search import Stage

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
    assert lasts[0].replications == lasts[1].replications
    rates = [{s.low.rate_rps, s.high.rate_rps} for s in lasts]
    seeds = [{c.seed for c in answers.asked if c.rate_rps in own} for own in rates]
    assert seeds[0] == seeds[1]
    assert len(seeds[0]) == len(lasts[0].replications)


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


def stage(name: str, goodput: float, numbers: Sequence[int]) -> Stage:
    """Return a final stage on the replications `numbers`, half of them at each rate."""
    half = len(numbers) // 2
    probes = []
    for rate, own in ((0.97 * goodput, numbers[:half]), (1.03 * goodput, numbers[half:])):
        runs = tuple(outcome(goodput, Cell(name, rate, number, 4000)) for number in own)
        probes.append(Probe(rate, 4000, runs, tuple(own)))
    low, high = probes
    return Stage(low=low, high=high, estimate=estimate_crossing(low.counts, high.counts, 0.9))


def test_a_pair_is_compared_on_replications_that_both_have_met() -> None:
    """Where one needed a stage more than the other, on the last one of both."""
    shared, further = range(1, 11), range(11, 21)
    stages = {
        "one": (stage("one", 100.0, shared), stage("one", 110.0, further)),
        "two": (stage("two", 105.0, shared),),
    }
    found = Found(
        scenario=resolve(DOCUMENT),
        settings=Settings(target=0.9),
        seed=0,
        num_gpus={"one": 2, "two": 2},
        verdicts={
            name: Verdict(status="found", estimate=own[-1].estimate, probes=(), stages=own)
            for name, own in stages.items()
        },
    )
    (pair,) = found.comparisons()
    assert (pair.first, pair.paired, pair.decided) == ("two", True, True)
    assert pair.ratio.value == pytest.approx(1.05, rel=0.005)
    own = stages["one"][1:]
    further_alone = Verdict(status="found", estimate=own[0].estimate, probes=(), stages=own)
    verdicts = {**found.verdicts, "one": further_alone}
    (pair,) = dataclasses.replace(found, verdicts=verdicts).comparisons()
    assert (pair.first, pair.paired) == ("one", False)
    assert math.log(pair.ratio.high / pair.ratio.low) > 0.05, "noise of both is in it"


def test_a_pair_is_not_compared_on_pilots() -> None:
    """Both have met those, but of many pilots some look far better than they are."""
    pilots, first, second = range(1_000_001, 1_000_007), range(1, 11), range(11, 21)

    def verdict(name: str, goodput: float, numbers: Sequence[int]) -> Verdict:
        pilot = dataclasses.replace(stage(name, 1.5 * goodput, pilots), is_final=False)
        final = stage(name, goodput, numbers)
        return Verdict(status="found", estimate=final.estimate, probes=(), stages=(pilot, final))

    one, two = verdict("one", 100.0, first), verdict("two", 105.0, second)
    pair = compare_verdicts("one", one, "two", two)
    assert pair is not None
    assert (pair.first, pair.paired) == ("two", False)
    assert pair.ratio.value == pytest.approx(1.05, rel=0.1)
    same = compare_verdicts("one", verdict("one", 100.0, second), "two", two)
    assert same is not None
    assert same.paired
