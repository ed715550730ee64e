"""Results in a notebook: tables with bounds as bounds, escaped; frames, pictures, reports."""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

import simcluster
from simcluster.errors import DataError
from simcluster.report import views
from simcluster.report.run_charts import RunCharts
from simcluster.runs.folder import Comparison
from simcluster.studies.goodput import find
from simcluster.studies.goodput import tables as goodput_tables
from simcluster.studies.goodput.runs import Found
from simcluster.studies.rank import report as rank_files
from simcluster.studies.rank.rank import rank
from simcluster.studies.rank.ranking import Ranking

SCENARIOS = Path(__file__).parents[2] / "scenarios"
PRICE = {"cluster.price_per_gpu_hour": 2.0}
FIXED = {"workload.lengths": {"kind": "fixed", "prompt_len": 900, "output_len": 5}}


@pytest.fixture(scope="module")
def comparison() -> Comparison:
    """Three strategies at two rates, both too low to find a goodput."""
    changes = {"workload.duration_s": 3, "sweep.rates_rps": [2, 4], **PRICE}
    return simcluster.compare(simcluster.load(SCENARIOS / "first.toml", changes), jobs=1)


@pytest.fixture(scope="module")
def found() -> Found:
    """Goodputs in two GPUs for 4 USD an hour."""
    scenario = simcluster.load(SCENARIOS / "first.toml", {**FIXED, **PRICE})
    return find(scenario.only("DistServe", "EcoServe"), tolerance=0.5, max_requests=1000, jobs=1)


@pytest.fixture(scope="module")
def ranking() -> Ranking:
    """A ranking by an estimator: seconds, without intervals."""
    return rank(simcluster.load(SCENARIOS / "rank_small.toml", {"rank.mode": "bestserve"}), jobs=1)


def test_a_bound_is_shown_as_a_bound(comparison: Comparison) -> None:
    """No goodput was found at 4 requests/s: every cell says that it is at least that."""
    text = comparison._repr_html_()
    cells = re.findall(r"<td>(.*?)</td>", text)
    assert (cells.count("≥ 4.00"), cells.count("≥ 2.00")) == (3, 3)
    assert "<strong>" in text
    assert "TTFT ≤ 1.00 s" in text


def test_a_repr_is_a_line(comparison: Comparison, found: Found, ranking: Ranking) -> None:
    """What a terminal shows of a value; its parts are thousands of lines."""
    assert repr(comparison) == "Comparison(6 runs of chunked prefill, DistServe, EcoServe)"
    assert repr(found) == "Found(goodputs of DistServe, EcoServe)"
    assert repr(ranking) == f"Ranking(7 candidates, {ranking.candidates[0].name} first)"


def test_what_users_name_is_text(comparison: Comparison) -> None:
    """Markup in names, headings and notes is shown and not run; control characters are told."""
    evil = "<script>alert(1)</script>"
    text = views.shown(f"{evil}\n{evil}", evil, pd.DataFrame({evil: [evil]}), [evil, "\x1b[31m"])
    assert "<script" not in text
    assert text.count("&lt;script&gt;") == 6
    assert "\x1b" not in text


def test_a_long_table_says_how_many_rows_are_left_out() -> None:
    """Forty are shown."""
    text = views.shown("a", "", pd.DataFrame({"x": range(45)}))
    assert "and 5 more" in text
    assert text.count("<tr") == 41


def test_frames_hold_what_programs_get(comparison: Comparison, found: Found) -> None:
    """The same numbers as ``--json``; cost per million tokens by hand."""
    assert comparison.to_frame().equals(comparison.goodput)
    frame = found.to_frame()
    rows = goodput_tables.as_json(found)["goodput"]
    assert frame["goodput_rps"].tolist() == [row["goodput_rps"]["value"] for row in rows]
    assert frame["cost_per_hour"].tolist() == [4.0, 4.0]
    per_hour = frame["goodput_rps"] * 3600 * 5 / 1e6
    np.testing.assert_allclose(frame["cost_per_million_output_tokens"], 4.0 / per_hour, rtol=1e-9)


def test_one_run_is_a_row_of_its_figures() -> None:
    """Without rates to compare there is no goodput, and the picture of one is refused."""
    scenario = simcluster.load(SCENARIOS / "first.toml", {"workload.duration_s": 2})
    changed = scenario.only("EcoServe")
    from simcluster.runs.compare import choose, run

    one = run(changed, choose(changed, "EcoServe", 4.0))
    assert len(one.to_frame()) == 1
    assert "slo_attainment" in one._repr_html_()
    with pytest.raises(DataError, match="several rates"):
        one.plot_goodput(ax=Figure().subplots())


def test_a_ranking_is_a_row_per_candidate_with_its_cost(ranking: Ranking) -> None:
    """The table of the command line says the same, per hour and per million tokens."""
    frame = ranking.to_frame()
    assert frame["name"].tolist() == [c.name for c in ranking.candidates]
    best = ranking.candidates[0]
    text = rank_files.as_text(ranking)
    assert "USD/h" in text
    per_million = 8.0 / (best.goodput_rps * 3600 * 20 / 1e6)
    assert f" {per_million:.3f}" in text
    html = ranking._repr_html_()
    assert best.name in html
    assert ranking.asked is not None
    assert [s.name for s in ranking.asked.strategies] == []


def test_pictures_go_into_the_axes_they_are_given(
    comparison: Comparison, found: Found, ranking: Ranking
) -> None:
    """And return them; each draws something."""
    for result, names in (
        (comparison, ("attainment", "goodput", "ttft", "tpot")),
        (found, ("goodput",)),
        (ranking, ("cost_front", "latency_front")),
    ):
        for name in names:
            ax = Figure().subplots()
            assert getattr(result, f"plot_{name}")(ax) is ax
            assert ax.get_xlabel()
    low = comparison.plot_ttft(Figure().subplots(), rate_rps=2)
    assert low.get_title(loc="left") == "2 requests/s"


def test_reports_stand_beside_their_results(
    comparison: Comparison, found: Found, ranking: Ranking, tmp_path: Path
) -> None:
    """The page names a folder that is there; results that were read are not written again."""
    for name, result in (("c", comparison), ("g", found), ("r", ranking)):
        page = result.report(tmp_path / f"{name}.html")
        assert page.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
        assert (tmp_path / name / "scenario.toml").is_file()
        assert str(tmp_path / name) in page.read_text(encoding="utf-8")
    read = simcluster.read(tmp_path / "c")
    assert read.folder == tmp_path / "c"
    read.report(tmp_path / "again.html")
    assert not (tmp_path / "again").exists()
    with pytest.raises(DataError, match=r"has no suffix. Write such as .*\.html"):
        found.report(tmp_path / "page")
    assert math.isfinite(found.to_frame()["goodput_rps"].sum())


def test_a_share_that_is_not_known_is_a_gap(comparison: Comparison) -> None:
    """Of runs without a request that a target is for: no point, and no line at zero."""
    charts = RunCharts(comparison, Path())
    sweep = comparison.sweep
    rows = (sweep["strategy"] == "EcoServe") & (sweep["rate_rps"] == 2)
    sweep.loc[rows, "tpot_attainment"] = np.nan
    try:
        traces = {t["name"]: t for t in charts._attainment_traces("tpot_attainment")}
        assert traces["EcoServe"]["x"] == [4.0]
        assert traces["DistServe"]["x"] == [2.0, 4.0]
        sweep.loc[sweep["strategy"] == "EcoServe", "tpot_attainment"] = np.nan
        traces = {t["name"]: t for t in charts._attainment_traces("tpot_attainment")}
        assert traces["EcoServe"]["x"] == []
    finally:
        del comparison.__dict__["sweep"]  # it is cached
