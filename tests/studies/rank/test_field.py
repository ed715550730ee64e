"""Who is ranked, how far the work has come, and margins below the goodput."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.scenarios import ranked_scenario
from simcluster.errors import ConfigError
from simcluster.runs.cell import Cell
from simcluster.scenario.file import load, resolve
from simcluster.scenario.rank_table import RankTable
from simcluster.studies.rank import margin, race
from simcluster.studies.rank.field import field_of
from simcluster.studies.rank.ranking import Latencies, Level
from simcluster.studies.space import space
from simcluster.studies.work import Work
from simcluster.testing.examples import examples

SHIPPED = Path(__file__).parents[3] / "scenarios"

# Candidates -------------------------------------------------------------------------------------


def test_a_strategy_of_the_file_is_not_ranked_twice() -> None:
    """What its defaults stand for is compared: instances, scheduler, chunk, limits."""
    scenario = load(SHIPPED / "planner_question.toml")
    assert scenario.rank is not None
    found = field_of(scenario.rank, scenario.environment, scenario.strategies)
    assert found.twins == {
        "8m-tp2-chunk8192": "chunked prefill",
        "8e-tp2": "EcoServe",
        "4p4d-tp2-inter": "FuDG 4 + 4",
        "5p3d-tp2-inter": "FuDG 5 + 3",
    }
    assert not set(found.twins) & set(found.strategies)
    own = [strategy.name for strategy in scenario.strategies]
    assert found.baselines(scenario.rank, own) == own
    named = dataclasses.replace(scenario.rank, baselines=("4m-tp4", "8e-tp2", "EcoServe"))
    assert found.baselines(named, own) == ["4m-tp4", "EcoServe"]
    assert found.baselines(dataclasses.replace(scenario.rank, baselines=()), own) == []


def test_a_strategy_that_differs_in_one_setting_is_another() -> None:
    """EcoServe with another slack is no plain ring."""
    scenario = load(SHIPPED / "rank_32gpus.toml")
    table = RankTable(num_gpus=(32,), strategies=("padg",), tp_sizes=(4,))
    found = field_of(table, scenario.environment, scenario.strategies)
    assert set(found.strategies) == {"8e-tp4", "EcoServe, slack max"}
    assert not found.twins
    scenario = load(SHIPPED / "planner_question.toml")
    table = RankTable(num_gpus=(16,), strategies=("chunked",), tp_sizes=(2,), chunk_sizes=(4096,))
    assert not field_of(table, scenario.environment, scenario.strategies).twins


def test_pools_that_share_the_only_node_are_one_candidate() -> None:
    """Between nodes is between nodes: with one node it is left to fudg-intra, if that is asked."""
    table = RankTable(tp_sizes=(1,), prefill_shares=(0.5,), strategies=("fudg-inter", "fudg-intra"))
    one = space(table, resolve(ranked_scenario()).environment)
    assert set(one.strategies) == {"2p2d-tp1"}
    assert one.removed == {
        "pools that are to be on different nodes would share one, as those of fudg-intra do": 1
    }
    alone = dataclasses.replace(table, strategies=("fudg-inter",))
    assert set(space(alone, resolve(ranked_scenario()).environment).strategies) == {
        "2p2d-tp1-inter"
    }
    two = resolve(ranked_scenario(), {"cluster.nodes": 2, "cluster.gpus_per_node": 2})
    assert set(space(table, two.environment).strategies) == {"2p2d-tp1", "2p2d-tp1-inter"}


def test_a_baseline_that_is_no_candidate_is_refused() -> None:
    """With the nearest there is."""
    scenario = resolve(ranked_scenario())
    table = RankTable(tp_sizes=(1,), strategies=("nodg",), baselines=("4m-tp2",))
    found = field_of(table, scenario.environment, scenario.strategies)
    with pytest.raises(ConfigError, match=r"not among the candidates\. Known: 4m-tp1, mine"):
        found.baselines(table, ["mine"])


# Work -------------------------------------------------------------------------------------------

PARTS = st.lists(
    st.tuples(st.integers(0, 5000), st.lists(st.integers(1, 3000), min_size=1, max_size=6)),
    min_size=1,
    max_size=5,
)


@examples(100)
@given(parts=PARTS)
def test_progress_is_what_is_done_of_what_is_known(
    parts: list[tuple[int, list[int]]],
) -> None:
    """It never falls, ends at all of it, and the expected work is never less than what is done."""
    told: list[tuple[int, int, float]] = []
    work = Work(lambda *values: told.append(values))
    for number, (expected, _) in enumerate(parts):
        work.expect(str(number), expected)
    for number, (_, runs) in enumerate(parts):
        for run in runs:
            work.did(str(number), run)
        work.end(str(number))
    total = sum(sum(runs) for _, runs in parts)
    assert work.num_requests == work.num_expected == total
    assert all(b[2] >= a[2] for a, b in itertools.pairwise(told))
    assert all(done <= whole and 0 <= share <= 1 for done, whole, share in told)


def test_work_that_grows_makes_the_share_stand() -> None:
    """Twice as much as expected: what is left is shown, not 100 %."""
    told: list[tuple[int, int, float]] = []
    work = Work(lambda *values: told.append(values))
    work.expect("finals", 100)
    for _ in range(20):
        work.did("finals", 10)
    assert told[8] == (90, 100, 0.9)
    assert told[9] == (100, 125, 0.9)
    assert told[19] == (200, 250, 0.9)


# Margins ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ttft_s", "tpot_s", "said"), [(0.996, 0.01, 1), (0.94, 0.01, 0), (0.96, 0.0391, 2)]
)
def test_who_is_at_its_target_at_half_its_goodput_is_named(
    ttft_s: float, tpot_s: float, said: int
) -> None:
    """Within 5 %; at three quarters nobody is warned of."""
    slo = load(SHIPPED / "planner_question.toml").environment.slo
    own = {
        key: dict.fromkeys(("p50", "p95", "p99", "wanted"), value)
        for key, value in (("ttft", ttft_s), ("tpot", tpot_s), ("e2el", 9.0))
    }
    seen = Latencies(rate_rps=12.0, percentiles=own)
    found = [Level(name="a", share=share, latencies=seen) for share in margin.SHARES]
    lines = margin.warnings(found, slo)
    assert len(lines) == said
    if said == 1:
        assert lines[0] == (
            "a has no margin: at half its goodput (12.0 requests/s) its P95 TTFT is 0.996 of 1 s"
        )


def test_latencies_are_the_quantiles_of_the_requests() -> None:
    """Of those counted, by numpy on the frames of an ordinary run."""
    import simcluster
    from simcluster.frames.metrics import measured_window

    scenario = resolve(ranked_scenario(), {"workload.num_requests": 500})
    seen = margin.latencies(scenario, Cell("mine", 20.0, 0, 500))
    frame = simcluster.simulate(scenario, strategy="mine", rate_rps=20.0, seed=0).requests
    end = float(frame["arrival_s"].iloc[-1])
    counted = measured_window(frame, race.WARMUP * end, 0.0)
    for key in ("ttft", "tpot"):
        values = frame[f"{key}_s"][counted]
        for name, share in (("p50", 0.5), ("p95", 0.95), ("p99", 0.99), ("wanted", 0.9)):
            assert seen.percentiles[key][name] == pytest.approx(np.quantile(values, share))


# Percentiles of their own -----------------------------------------------------------------------


def test_a_percentile_of_its_own_moves_the_goodput_as_attainment_does() -> None:
    """P99 of the TTFT alone is attainment 0.99 of the TTFT alone, in a run and in the goodput."""
    marginal = {"slo.criterion": "marginal", "slo.tpot_s": None}
    whole = resolve(ranked_scenario(), {**marginal, "slo.attainment": 0.99})
    own = resolve(
        ranked_scenario(), {**marginal, "slo.attainment": 0.9, "slo.percentiles": {"ttft": 99.0}}
    )
    run = race.probe(own, Cell("mine", 70.0, 1, 2000))
    assert 0.9 < run.ttft_attainment < 0.999
    moved = race.log_odds(run.ttft_attainment, 2000) - race.log_odds(0.99, 2000)
    assert run.log_odds - race.log_odds(0.9, 2000) == pytest.approx(moved, abs=0.02)
    found = [
        race.cross(one, guess_rps=68.0, seed=1, num_requests=1000, near=1.05).goodput_rps
        for one in (whole, own)
    ]
    assert found[1] == pytest.approx(found[0], rel=0.01)
