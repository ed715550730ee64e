"""Plans that collapse: a queue whose probability of it is known, and queues that only look so."""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import numpy as np
import pytest
from scipy import stats

from simcluster.studies.goodput.probe import PARTS, Outcome, Probe, Wanted
from simcluster.studies.goodput.rules import RULES, Settings
from simcluster.studies.goodput.search import search
from simcluster.studies.goodput.shape import Falls, falls_at, in_two_groups


@pytest.fixture(scope="module")
def bench(script: Any) -> Any:
    """Return the queues of the benchmark."""
    return script("benchmarks/metastable.py")


def toy_settings(bench: Any) -> Settings:
    """Return what the benchmark asks of the toy, with its shortest runs."""
    return Settings(target=0.9, least_s=20 * bench.WAIT_S, max_requests=4000)


def test_the_toy_collapses_as_often_as_its_chain_says(bench: Any) -> None:
    """Powers of the transition matrix against simulated runs: 200 runs, four standard errors."""
    truth = bench.collapse_probability(0.9, 4000)
    runs = [bench.toy(Wanted(0.9, seed, 4000), seed) for seed in range(200)]
    seen = np.mean([one.backlogs[-1] > 2 * bench.LIMIT for one in runs])
    assert 0.2 < truth < 0.8
    assert seen == pytest.approx(truth, abs=4 * math.sqrt(truth * (1 - truth) / 200))


@pytest.mark.parametrize("seed", range(6))
def test_a_plan_that_collapses_is_recognised(bench: Any, seed: int) -> None:
    """The recommended rate is one without a collapse, below all that showed one."""
    verdict = bench.one_search(seed, bench.toy, toy_settings(bench))
    assert verdict.status == "collapses"
    assert verdict.estimate is None
    assert verdict.goodput is not None
    assert verdict.recommended is not None
    held, *above = verdict.falls
    assert held.num_fallen == 0
    assert held.rate_rps == verdict.goodput.value == verdict.recommended.rate_rps
    assert held.num_runs == RULES.safe * toy_settings(bench).replications
    assert all(falls.num_fallen for falls in above)
    assert verdict.goodput.high == above[0].rate_rps
    # What the chain says of that rate lies within what is stated of it.
    per_run = bench.collapse_probability(held.rate_rps, verdict.recommended.num_requests)
    hours = verdict.recommended.num_requests / held.rate_rps / 3600
    assert -math.log1p(-per_run) / hours < 3 * held.per_hour[2]


def test_traffic_of_two_kinds_is_no_collapse(bench: Any) -> None:
    """Where runs differ by their arrivals no collapse is looked for."""
    settings = dataclasses.replace(toy_settings(bench), even=False)
    assert not bench.one_search(0, bench.toy, settings).falls


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("wait_s", [10.0, 50.0])
def test_a_queue_near_its_limit_does_not_collapse(bench: Any, wait_s: float, seed: int) -> None:
    """M/D/1: its long queues empty again, and are served as quickly as short ones."""
    run = functools.partial(bench.md1, wait_s)
    settings = Settings(target=0.9, tolerance=0.1, least_s=20 * wait_s)
    assert not bench.one_search(seed, run, settings).falls


def run(course: list[float], backlog: int, served: float = 0.9) -> Outcome:
    """Return a run of 4,000 requests at 1 request/s."""
    return Outcome(
        counted=(2800,),
        met=(round(280 * sum(course[3:])),),
        residence_s=1.0,
        arrivals=0.0,
        drift=0.0,
        growth=0.0,
        course=tuple(course),
        backlogs=(*[10] * 9, backlog),
        served=(round(400 * served),) * PARTS,
        end_s=4000.0,
    )


HEALTHY = run([0.99] * PARTS, 10, 1.0)
FALLEN = run([0.99] * 5 + [0.5] + [0.0] * 4, 600)


@pytest.mark.parametrize(
    ("runs", "expected"),
    [
        ((HEALTHY, FALLEN, HEALTHY), True),
        ((HEALTHY, HEALTHY, HEALTHY), False),
        ((FALLEN, FALLEN, FALLEN), False),  # an overload: no run is healthy
        ((HEALTHY, run([0.99] * 5 + [0.0] * 2 + [0.99] * 3, 10)), False),  # recovers
        ((HEALTHY, run([0.99] * 6 + [0.0] * 4, 100)), False),  # a queue that chance explains
        ((HEALTHY, run([0.99] * 6 + [0.0] * 4, 600, 1.0)), False),  # serves what is offered
        ((HEALTHY, run([0.0] * PARTS, 600)), False),  # never worked
        ((HEALTHY, FALLEN, run([0.8, 0.99] * 5, 10)), True),
        ((HEALTHY, FALLEN, run([0.7] * PARTS, 10)), False),  # neither healthy nor fallen
        ((run([0.6, 0.99] * 5, 10), run([0.6, 0.6, 0.99] * 2 + [0.0] * 4, 600)), False),
    ],
)
def test_what_two_groups_are(runs: tuple[Outcome, ...], expected: bool) -> None:
    """Each condition of the definition by a run that breaks it alone."""
    probe = Probe(1.0, 4000, runs, tuple(range(len(runs))))
    assert in_two_groups(probe, (0.9,)) == expected


def test_runs_without_their_course_are_no_groups() -> None:
    """Nobody knows how they went."""
    runs = tuple(dataclasses.replace(one, course=()) for one in (HEALTHY, FALLEN))
    assert not in_two_groups(Probe(1.0, 4000, runs, (1, 2)), (0.9,))


def test_falls_are_counted_with_the_time_until_them() -> None:
    """Two runs of 4,000 s, one healthy for six tenths of it: 1.78 hours."""
    falls = falls_at(Probe(1.0, 4000, (HEALTHY, FALLEN), (1, 2)), (0.9,))
    assert (falls.num_runs, falls.num_fallen, falls.num_recovered) == (2, 1, 0)
    assert falls.hours == pytest.approx(1.6 * 4000 / 3600)


@pytest.mark.parametrize(
    ("num", "low", "high"), [(0, 0.0, 2.9957), (1, 0.0253, 5.5716), (3, 0.6187, 8.7673)]
)
def test_the_interval_of_collapses_is_garwoods(num: int, low: float, high: float) -> None:
    """Published limits of a Poisson mean (Garwood 1936, table; one-sided for none), in an hour."""
    falls = Falls(rate_rps=1.0, num_runs=8, num_fallen=num, num_recovered=0, healthy_s=3600.0)
    assert falls.per_hour == pytest.approx((num, low, high), abs=1e-4)
    if num:
        assert stats.poisson.sf(num - 1, falls.per_hour[1]) == pytest.approx(0.025, abs=1e-6)


def test_targets_missed_at_low_load_are_seen() -> None:
    """A plan that holds requests back misses its targets where few come."""

    def answer(wanted: Wanted) -> Outcome:
        rate = wanted.rate_rps
        odds = math.log(9) - 12 * math.log(rate / 10) if rate > 4 else 0.0
        met = round(10**6 / (1 + math.exp(-odds)))
        return Outcome(
            counted=(10**6,), met=(met,), residence_s=1.0, arrivals=0.0, drift=0.0, growth=0.0
        )

    going = search(9.0, Settings(target=0.9))
    wanted = next(going)
    while True:
        try:
            wanted = going.send([answer(one) for one in wanted])
        except StopIteration as end:
            verdict = end.value
            break
    assert verdict.goodput.value == pytest.approx(10.0)
    assert [probe.rate_rps for probe in verdict.dips] == [pytest.approx(2.5)]
