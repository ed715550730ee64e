"""Rankings whose rounds and finals end in every way: always a table, or one line that says why."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.scenarios import ranked_scenario
from simcluster.errors import DataError
from simcluster.runs.cell import Cell
from simcluster.scenario.file import resolve
from simcluster.scenario.rank_table import RankTable
from simcluster.scenario.scenario import Scenario
from simcluster.studies.goodput import Found, Outcome, Settings, Verdict
from simcluster.studies.goodput.estimate import estimate_crossing
from simcluster.studies.goodput.probe import Probe
from simcluster.studies.goodput.search import Stage, Status
from simcluster.studies.rank import contest, finals, margin, report, rounds
from simcluster.studies.rank.race import Crossing, RaceRun, Search
from simcluster.studies.rank.rank import rank
from simcluster.studies.rank.ranking import Latencies, Ranking
from simcluster.testing.examples import examples

DOCUMENT = ranked_scenario()
TABLE = RankTable(
    num_gpus=(2, 4), strategies=("nodg", "padg"), tp_sizes=(1,), prefill_shares=(0.5,), finalists=2
)
SCENARIO = resolve(DOCUMENT)
KEYS = ("ttft", "tpot", "e2el")
NAMES = ("2m-tp1", "4m-tp1", "2e-tp1", "4e-tp1", "mine")

Race = Mapping[str, list[float]]
"""Goodput of each candidate in each search for it: 0 for none, infinite for no limit."""


def raced(name: str, goodput: float, *, falls: bool, residence_s: float) -> Crossing:
    """Return a search of the race that ended at `goodput`."""

    def probe(rate: float, share: float) -> RaceRun:
        return RaceRun(
            rate_rps=rate,
            num_requests=1000,
            attainment=share,
            ttft_attainment=share,
            tpot_attainment=1.0,
            ttft_s=math.nan,
            tpot_s=0.1,
            residence_s=residence_s,
            peak_kv_usage=0.5,
            num_preemptions=0,
        )

    low, high = probe(0.97 * goodput, 0.93), probe(1.03 * goodput, 0.87 if falls else 0.93)
    if goodput == 0:
        low, high = probe(0.0, 1.0), probe(1e-4, 0.1)
    if math.isinf(goodput):
        low, high = probe(60.0, 1.0), probe(math.inf, 0.0)
    seen = [p for p in (low, high) if 0 < p.rate_rps < math.inf]
    return Crossing(
        name=name,
        goodput_rps=low.rate_rps if math.isinf(goodput) else goodput,
        low_rps=low.rate_rps,
        high_rps=high.rate_rps,
        probes=tuple(seen),
        num_requests=1000 * len(seen),
    )


def verdict(status: Status, goodput: float) -> Verdict:
    """Return how the search of a finalist ended."""
    spread = {"found": 0.01, "wide": 2.0, "not settled": 0.5}.get(status, 0.0)
    size = 3 if status == "not settled" else 5
    probes = []
    for side in (-1, 1):
        odds = [math.log(9) - side + spread * (k - size // 2) for k in range(size)]
        shares = [round(10**9 / (1 + math.exp(-x))) for x in odds]
        runs = tuple(
            Outcome(
                counted=(10**9,), met=(met,), residence_s=1.0, arrivals=0.0, drift=0.0, growth=0.0
            )
            for met in shares
        )
        numbers = tuple(range(size * (side > 0), size * (1 + (side > 0))))
        probes.append(Probe(goodput * math.exp(0.05 * side), 4000, runs, numbers))
    low, high = probes
    estimate = estimate_crossing(low.counts, high.counts, 0.9)
    stage = Stage(low=low, high=high, estimate=estimate)
    if status in ("unlimited", "unattainable"):
        return Verdict(status=status, estimate=None, probes=(low,))
    return Verdict(
        status=status,
        estimate=None if status == "not settled" else estimate,
        probes=(low, high),
        stages=(stage,),
    )


def ranked(
    race: Race,
    ends: Mapping[str, tuple[Status, float]],
    *,
    falls: bool = True,
    residence_s: float = 1.0,
    scenario: Scenario = SCENARIO,
    table: RankTable = TABLE,
) -> Ranking:
    """Rank candidates whose searches end like this."""
    count = dict.fromkeys(NAMES, 0)

    def search(start: Cell, *_: object, **__: object) -> Search:
        name = start.strategy
        goodput = race[name][count[name]]
        count[name] += 1
        yield from ()
        return raced(name, goodput, falls=falls, residence_s=residence_s)

    def find(scenario: Scenario, *, tolerance: float, **_: Any) -> Found:
        names = [strategy.name for strategy in scenario.strategies]
        return Found(
            scenario=scenario,
            settings=Settings(target=0.9, tolerance=tolerance),
            seed=0,
            num_gpus=dict.fromkeys(names, 4),
            verdicts={name: verdict(*ends[name]) for name in names},
        )

    def latencies(_: Scenario, cell: Cell) -> Latencies:
        own = dict.fromkeys(("p50", "p95", "p99", "wanted"), 0.01)
        return Latencies(rate_rps=cell.rate_rps or 0.0, percentiles={k: own for k in KEYS})

    def probe(_: Scenario, cell: Cell) -> RaceRun:
        return raced("", cell.rate_rps or 0.0, falls=True, residence_s=residence_s).probes[0]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rounds, "search", search)
        patch.setattr(contest, "probe", probe)
        patch.setattr(margin, "latencies", latencies)
        patch.setattr(finals, "find", find)
        return rank(scenario, table, jobs=1)


GOODPUTS = st.one_of(
    st.floats(0.5, 90.0), st.sampled_from([0.0, math.inf, 20.0, 20.0 * (1 + 1e-15), 1e-6])
)
STATUSES: tuple[Status, ...] = ("found", "wide", "not settled", "unlimited", "unattainable")
DRAWS = 2 + rounds.REPLICATIONS


@examples(150)
@given(
    race=st.fixed_dictionaries(
        {name: st.lists(GOODPUTS, min_size=DRAWS, max_size=DRAWS) for name in NAMES}
    ),
    ends=st.fixed_dictionaries(
        {name: st.tuples(st.sampled_from(STATUSES), st.floats(0.01, 1e3)) for name in NAMES}
    ),
    falls=st.booleans(),
    residence_s=st.sampled_from([1.0, math.nan, 0.0]),
)
def test_any_rounds_and_finals_end_in_a_table_or_in_one_line(
    race: Race, ends: Mapping[str, tuple[Status, float]], falls: bool, residence_s: float
) -> None:
    """Sorted, with intervals around the goodputs; settled are those that the finals settled."""
    try:
        ranking = ranked(race, ends, falls=falls, residence_s=residence_s)
    except DataError as error:
        line = str(error)
    else:
        check(ranking, ends)
        return
    assert "\n" not in line
    assert any(0.0 in goodputs for goodputs in race.values()), "each met the targets always"


def check(ranking: Ranking, ends: Mapping[str, tuple[Status, float]]) -> None:
    """Check a ranking whose finalists end like this."""
    goodputs = [c.goodput_rps for c in ranking.candidates]
    assert {c.name for c in ranking.candidates} == set(NAMES)
    assert goodputs == sorted(goodputs, reverse=True)
    for c in ranking.candidates:
        assert 0.0 <= c.low_rps <= c.goodput_rps <= c.high_rps
        assert math.isfinite(c.goodput_rps)
        settled = ends[c.name][0] in ("found", "wide")
        assert c.stage != "final" or settled
        assert c.name not in ranking.unsettled or not settled
    known = [c for c in ranking.candidates if c.stage == "final"]
    assert len(ranking.decided) + len(ranking.undecided) == math.comb(len(known), 2)
    text, plain = report.as_text(ranking), report.as_json(ranking)
    json.dumps(plain, allow_nan=False)
    assert ("No finalist has a settled goodput" in text) == (not known)
    said = " ".join(text.split())
    assert all(f"{name}: {words}" in said for name, words in ranking.unsettled.items())
    assert ranking.cost_front()


def same(*goodputs: float) -> Race:
    """Return the same searches for every candidate."""
    return {name: list(goodputs) for name in NAMES}


FIVE = same(*[20.0] * DRAWS)
CASES: dict[str, tuple[Race, dict[str, tuple[Status, float]]]] = {
    "none settled": (FIVE, dict.fromkeys(NAMES, ("not settled", 20.0))),
    "one settled": (
        FIVE,
        {**dict.fromkeys(NAMES, ("not settled", 20.0)), "4m-tp1": ("wide", 19.0)},
    ),
    "all equal": (FIVE, dict.fromkeys(NAMES, ("found", 20.0))),
    "no limit": (same(*[math.inf] * DRAWS), dict.fromkeys(NAMES, ("unlimited", 20.0))),
    "one draw without": (
        {**FIVE, "4m-tp1": [20.0, 20.0, 20.0, 0.0, 20.0]},
        dict.fromkeys(NAMES, ("found", 20.0)),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_rankings_are_written_however_the_finals_end(case: str, tmp_path: Path) -> None:
    """Rows and pictures."""
    ranking = ranked(*CASES[case])
    pictures = report.write(ranking, tmp_path / "out")
    assert all(picture.stat().st_size > 0 for picture in pictures)
    rows = json.loads((tmp_path / "out" / "ranking.json").read_text())["candidates"]
    assert len(rows) == len(NAMES)


@pytest.mark.parametrize("status", STATUSES)
def test_a_single_candidate_is_ranked_however_it_ends(status: Status, tmp_path: Path) -> None:
    """Nothing to compare it with."""
    alone = dataclasses.replace(SCENARIO, strategies=())
    table = RankTable(num_gpus=(2,), strategies=("nodg",), tp_sizes=(1,))
    ends: dict[str, tuple[Status, float]] = {"2m-tp1": (status, 20.0)}
    ranking = ranked(FIVE, ends, scenario=alone, table=table)
    (only,) = ranking.candidates
    assert only.stage == ("final" if status in ("found", "wide") else "race")
    assert (ranking.decided, ranking.undecided) == ((), ())
    assert report.write(ranking, tmp_path / "out")
    assert report.as_text(ranking)


def test_what_no_final_settled_is_called_raced() -> None:
    """The best keeps the goodput of the third round, and nothing is said to be settled."""
    ranking = ranked(*CASES["none settled"])
    assert {c.stage for c in ranking.candidates} == {"race"}
    # Two finalists, among them the best of NoDG, the best of PaDG, and the file's own strategy.
    assert {"mine"} < set(ranking.unsettled)
    assert {ranking.scenario.strategy(name).kind for name in ranking.unsettled} == {"nodg", "padg"}
    assert len(ranking.raced) == len(ranking.unsettled) - 1
    best = ranking.candidates[0]
    assert best.goodput_rps == pytest.approx(20.0)
    # Three equal draws: nothing but what short runs may flatter.
    assert best.high_rps == pytest.approx(20.0 * math.exp(0.08))
    assert "0 settled" in report.as_text(ranking)


def test_a_draw_without_a_goodput_leaves_those_of_others_alone() -> None:
    """One candidate that misses the targets on one draw does not widen the others' intervals."""
    whole = ranked(*CASES["all equal"])
    hurt = ranked(*CASES["one draw without"])
    before = {c.name: (c.low_rps, c.high_rps) for c in whole.candidates if c.stage == "race"}
    after = {c.name: (c.low_rps, c.high_rps) for c in hurt.candidates if c.stage == "race"}
    shared = (before.keys() & after.keys()) - {"4m-tp1"}
    assert shared
    for name in shared:
        assert after[name] == pytest.approx(before[name])


def test_rows_are_written_though_a_picture_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A ranking takes minutes: what it found is not lost at the last step."""

    def fail(*_: object, **__: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(report, "plot_cost_front", fail)
    with pytest.raises(ZeroDivisionError):
        report.write(ranked(*CASES["all equal"]), tmp_path / "out")
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"ranking.json", "ranking.csv"}
