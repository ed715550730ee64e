"""Latencies, targets, windows and levels against values written down by hand and against laws."""

import heapq
import math
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simcluster.config import RunConfig, SloConfig, SloPercentiles, SloTargets
from simcluster.errors import ConfigError
from simcluster.frames.goodput import wanted_shares
from simcluster.frames.itl import Gaps
from simcluster.frames.metrics import (
    attainment_error,
    attainments,
    binned_average,
    cached_block_share,
    cached_token_share,
    count_over_time,
    ecdf,
    level_over_time,
    measured_window,
    median,
    met_targets,
    quantiles,
    queued_over_time,
    request_metrics,
    summarise,
    time_average,
    waiting_over_time,
)
from simcluster.frames.schema import REQUESTS, SPANS, SWEEP, checked, frame
from simcluster.testing.examples import examples
from simcluster.units import FloatArray

NAN = float("nan")
Columns = dict[str, npt.NDArray[Any]]

DURATIONS = {"transfer_s", "queue_s", "ttft_s", "tpot_s", "e2el_s"}
TIMES = [name for name in REQUESTS if name.endswith("_s") and name not in DURATIONS]


def requests(rows: list[dict[str, Any]]) -> Columns:
    """Build a requests frame from what matters to a test.

    A row without ``last_output_s`` did not finish; moments not given are those of the output.
    """
    filled = []
    for i, row in enumerate(rows):
        done = not np.isnan(row.get("last_output_s", NAN))
        first, last = row.get("first_output_s", NAN), row.get("last_output_s", NAN)
        base: dict[str, Any] = {
            "request_id": i,
            "prompt_len": 100,
            "output_len": 11,
            "num_output_tokens": row.get("output_len", 11) if done else 0,
            "status": "finished" if done else "unfinished",
            "prefill_instance": 0,
            "decode_instance": 0,
            "routed_s": row["arrival_s"],
            "scheduled_s": row["arrival_s"],
            "first_token_s": first,
            "decode_start_s": first,
            "first_output_s": first,
            "last_token_s": last,
            "last_output_s": last,
            "transfer_s": 0.0,
            "num_preemptions": 0,
            "num_cached_tokens": 0,
            "queue_s": NAN,
            "ttft_s": NAN,
            "tpot_s": NAN,
            "e2el_s": NAN,
            "model": "m",
            "score": NAN,
            "quality": NAN,
        }
        filled.append(base | row)
    return checked({name: np.array([r[name] for r in filled]) for name in REQUESTS}, REQUESTS)


HELD_BACK = requests(
    [
        # computed at 2, decoding from 3, shown from 5 on; last token computed at 8, shown at 10
        {
            "arrival_s": 1.0,
            "first_token_s": 2.0,
            "decode_start_s": 3.0,
            "first_output_s": 5.0,
            "last_token_s": 8.0,
            "last_output_s": 10.0,
        },
        {"arrival_s": 4.0, "output_len": 1, "first_output_s": 6.0, "last_output_s": 6.0},
        {"arrival_s": 5.0, "status": "rejected"},
        {"arrival_s": 6.0, "first_output_s": 7.0},
    ]
)


@pytest.mark.parametrize("as_frame", [False, True])
def test_both_metrics_are_their_formulas(as_frame: bool) -> None:
    """What the user sees, and what the EcoServe paper counts, from the same stamps."""
    columns = frame(HELD_BACK, REQUESTS) if as_frame else HELD_BACK
    user = request_metrics(columns)
    assert user["ttft_s"] == pytest.approx([4.0, 2.0, NAN, 1.0], nan_ok=True)
    assert user["tpot_s"] == pytest.approx([0.5, NAN, NAN, NAN], nan_ok=True)
    assert user["e2el_s"] == pytest.approx([9.0, 2.0, NAN, NAN], nan_ok=True)
    paper = request_metrics(columns, "ecoserve")
    assert paper["ttft_s"] == pytest.approx([2.0, 2.0, NAN, 1.0], nan_ok=True)
    assert paper["tpot_s"] == pytest.approx([0.5, NAN, NAN, NAN], nan_ok=True)
    assert paper["e2el_s"] == pytest.approx([9.0, 2.0, NAN, NAN], nan_ok=True)


def test_an_unknown_metric_is_refused_with_the_known_ones() -> None:
    """A typing error must not fall back to a default."""
    with pytest.raises(ConfigError, match=r"slo\.metric = 'users'.*Did you mean 'user'"):
        request_metrics(HELD_BACK, "users")


ALL_MEET = SloConfig(ttft_s=100.0, tpot_s=100.0, e2el_s=100.0)


def test_unfinished_and_rejected_requests_miss_every_target() -> None:
    """However lax the targets: counting the finished alone flatters an overloaded cluster."""
    for slo in (ALL_MEET, SloConfig()):
        for name, met in met_targets(HELD_BACK, slo).items():
            assert met.tolist() == [True, True, False, False], name


def test_a_rejected_one_token_request_misses_tpot() -> None:
    """Only a finished answer is excused from having no time between tokens."""
    columns = requests(
        [
            {"arrival_s": 0.0, "output_len": 1, "status": "rejected"},
            {"arrival_s": 1.0, "output_len": 1, "first_output_s": 2.0},
        ]
    )
    assert met_targets(columns, ALL_MEET)["tpot"].tolist() == [False, False]


def test_a_target_that_is_just_met_is_met() -> None:
    """Latency equal to its target meets it, one tick more misses it."""
    exact = SloConfig(ttft_s=4.0, tpot_s=0.5, e2el_s=9.0)
    assert met_targets(HELD_BACK, exact)["joint"][0]
    for name, value in (("ttft_s", 4.0), ("tpot_s", 0.5), ("e2el_s", 9.0)):
        changes: dict[str, Any] = {name: value - 2.0**-32}
        tighter = replace(exact, **changes)
        met = met_targets(HELD_BACK, tighter)
        assert not met["joint"][0]
        assert [met[n][0] for n in ("ttft", "tpot", "e2el")].count(False) == 1
        assert not met[name.removesuffix("_s")][0]


def test_a_one_token_answer_cannot_miss_tpot_but_can_miss_ttft() -> None:
    """It has no time between tokens."""
    met = met_targets(HELD_BACK, SloConfig(ttft_s=1.0, tpot_s=1e-9))
    assert met["tpot"][1]
    assert not met["ttft"][1]
    assert not met["joint"][1]


def test_targets_are_counted_by_the_metric_of_the_slo() -> None:
    """Held-back output misses a TTFT target of 3 s that its decode start meets."""
    slo = SloConfig(ttft_s=3.0)
    assert not met_targets(HELD_BACK, slo)["ttft"][0]
    assert met_targets(HELD_BACK, replace(slo, metric="ecoserve"))["ttft"][0]


def test_shares_of_each_target_and_class_are_columns_where_targets_have_percentiles() -> None:
    """TTFT 1, 9, 9 s of class a and 1, 1 of class b; TPOT 0.9 s twice in b, where it is no target.

    Counted by hand: a has TTFT 1/3 and TPOT 3/3; b has TTFT 2/2 and no target of the TPOT.
    """
    rows = [
        {"arrival_s": 0.0, "first_output_s": ttft, "last_output_s": ttft + 10 * tpot}
        for ttft, tpot in [(1.0, 0.1), (9.0, 0.1), (9.0, 0.1), (1.0, 0.9), (1.0, 0.9)]
    ]
    columns = {**requests(rows), "slo_class": np.array(list("aaabb"), dtype=object)}
    classes = {"a": SloTargets(ttft_s=5.0, tpot_s=0.5), "b": SloTargets(ttft_s=5.0)}
    percentiles = SloPercentiles(ttft=95, tpot=99)
    slo = SloConfig(classes=classes, criterion="marginal", percentiles=percentiles)
    row = summary(columns, slo=slo)
    found = {key: row[key] for key in row if "_attainment." in key}
    assert found == {
        "slo_attainment.a": pytest.approx(1 / 3),
        "slo_attainment.b": 1.0,
        "ttft_attainment.a": pytest.approx(1 / 3),
        "tpot_attainment.a": 1.0,
        "ttft_attainment.b": 1.0,
    }
    wanted = {"ttft_attainment.a": 0.95, "tpot_attainment.a": 0.99, "ttft_attainment.b": 0.95}
    assert wanted_shares(slo) == wanted
    alone = summary(requests(rows), slo=replace(slo, classes=None, ttft_s=5.0, e2el_s=5.0))
    assert (alone["ttft_attainment"], alone["e2el_attainment"]) == (0.6, 0.2)
    assert not [key for key in alone if "_attainment." in key]


@pytest.mark.parametrize("together", [1, 100])
def test_the_error_of_an_attainment_is_that_of_its_scatter(together: int) -> None:
    """Requests that meet their target by blocks of so many: binomial, with fewer independent."""
    rng = np.random.default_rng(5)
    num, errors, shares = 4000, [], []
    for _ in range(200):
        met = np.repeat(rng.random(num // together) < 0.8, together)
        columns = {
            "status": np.full(num, "finished", dtype=object),
            "arrival_s": np.arange(num, dtype=float),
            "first_output_s": np.arange(num) + np.where(met, 1.0, 9.0),
            "last_output_s": np.arange(num) + 10.0,
            "output_len": np.full(num, 2),
        }
        slo, everyone = SloConfig(ttft_s=5.0), np.ones(num, np.bool_)
        errors.append(attainment_error(columns, slo, everyone))
        shares.append(met.mean())
        assert np.isnan(attainment_error(columns, slo, np.arange(num) < 19))
    known = np.sqrt(0.16 / (num / together))
    assert np.std(shares) == pytest.approx(known, rel=0.2)
    # Four standard errors of a mean of 200 variances with nine degrees of freedom each.
    assert np.sqrt(np.mean(np.square(errors))) == pytest.approx(known, rel=4 / np.sqrt(2 * 9 * 200))


def test_marginal_attainment_is_the_smallest_share_and_joint_the_share_of_all() -> None:
    """Two requests miss TTFT, two others TPOT: 3/5 each, 1/5 together."""
    rows = [
        {"arrival_s": 0.0, "first_output_s": ttft, "last_output_s": ttft + 10 * tpot}
        for ttft, tpot in [(1.0, 0.1), (9.0, 0.1), (9.0, 0.1), (1.0, 0.9), (1.0, 0.9)]
    ]
    columns, counted = requests(rows), np.ones(5, dtype=np.bool_)
    joint = SloConfig(ttft_s=5.0, tpot_s=0.5)
    assert attainments(columns, joint, counted)["slo"] == pytest.approx(1 / 5)
    assert attainments(columns, replace(joint, criterion="marginal"), counted)[
        "slo"
    ] == pytest.approx(3 / 5)
    with pytest.raises(ConfigError, match=r"slo\.criterion = 'both'"):
        attainments(columns, replace(joint, criterion="both"), counted)  # type: ignore[arg-type]


def test_the_window_keeps_both_its_edges() -> None:
    """Requests before the warm-up's end, and in the last seconds of the arrivals, are left out."""
    columns = requests([{"arrival_s": t} for t in (0.0, 9.99, 10.0, 15.0, 20.0, 20.01, 30.0)])
    assert measured_window(columns, 10.0, 10.0).tolist() == [
        False,
        False,
        True,
        True,
        True,
        False,
        False,
    ]
    assert measured_window(columns, 0.0, 0.0).all()
    assert not measured_window(columns, 25.0, 10.0).any()


def test_the_window_is_cut_by_arrival_not_by_finish() -> None:
    """A request of the warm-up that finishes late does not slip in."""
    columns = requests(
        [
            {"arrival_s": 1.0, "first_output_s": 50.0, "last_output_s": 60.0},
            {"arrival_s": 20.0, "first_output_s": 21.0, "last_output_s": 22.0},
        ]
    )
    assert measured_window(columns, 10.0, 0.0).tolist() == [False, True]


def summary(columns: Columns, **changes: Any) -> dict[str, Any]:
    """Summarise with everything the test does not care about filled in."""
    settings_: dict[str, Any] = {"slo": ALL_MEET, "run": RunConfig()} | changes
    labels: dict[str, Any] = {"strategy": "s", "rate_rps": 1.0, "seed": 7, "num_gpus": 4}
    labels |= {key: settings_.pop(key) for key in labels if key in settings_}
    return summarise(columns, **labels, **settings_)


def test_a_summary_is_one_row_of_the_sweep_frame() -> None:
    """The schema says which columns; the labels are copied."""
    row = summary(HELD_BACK)
    assert set(row) == set(SWEEP)
    sweep = frame({name: np.array([value]) for name, value in row.items()}, SWEEP)
    assert sweep["strategy"].tolist() == ["s"]
    assert sweep[["rate_rps", "seed", "num_gpus"]].to_numpy().tolist() == [[1.0, 7.0, 4.0]]


def test_counts_and_attainment_are_over_the_arrived() -> None:
    """Of four arrived two finished, one was rejected, one is unfinished: half met the targets."""
    row = summary(HELD_BACK)
    assert (row["num_requests"], row["num_finished"], row["num_rejected"]) == (4, 2, 1)
    assert row["slo_attainment"] == row["ttft_attainment"] == row["tpot_attainment"] == 0.5
    assert row["good_rps"] == pytest.approx(2 / 9)  # from the first arrival to the last output
    assert (row["rates_from_s"], row["rates_to_s"]) == (1.0, 10.0)


def test_percentiles_interpolate_between_order_statistics() -> None:
    """TTFT 1..5 s: the 90th percentile lies 0.6 of the way from the fourth to the fifth."""
    columns = requests(
        [
            {"arrival_s": 10.0 * i, "first_output_s": 10.0 * i + t, "last_output_s": 10.0 * i + t}
            for i, t in enumerate([3.0, 1.0, 5.0, 2.0, 4.0])
        ]
    )
    row = summary(columns)
    assert row["ttft_s_mean"] == pytest.approx(3.0)
    assert row["ttft_s_p50"] == pytest.approx(3.0)
    assert row["ttft_s_p90"] == pytest.approx(4.6)
    assert row["ttft_s_p95"] == pytest.approx(4.8)
    assert row["ttft_s_p99"] == pytest.approx(4.96)


def test_latencies_are_those_of_the_finished_in_the_window() -> None:
    """Neither the warm-up nor a request cut off after its first output takes part."""
    columns = requests(
        [
            {"arrival_s": 1.0, "first_output_s": 91.0, "last_output_s": 92.0},
            {"arrival_s": 20.0, "first_output_s": 23.0, "last_output_s": 24.0},
            {"arrival_s": 30.0, "first_output_s": 80.0},
        ]
    )
    row = summary(columns, run=RunConfig(warmup_s=10.0))
    assert (row["num_requests"], row["num_finished"]) == (2, 1)
    assert row["ttft_s_mean"] == row["ttft_s_p99"] == 3.0


def test_percentiles_of_nothing_are_silently_nan() -> None:
    """Nothing finished, or only one-token answers: no warning, no number."""
    unfinished = summary(requests([{"arrival_s": 1.0}, {"arrival_s": 2.0}]))
    one_token = requests(
        [{"arrival_s": 1.0, "output_len": 1, "first_output_s": 2.0, "last_output_s": 2.0}]
    )
    for stat in ("mean", "p50", "p90", "p95", "p99"):
        assert np.isnan(unfinished[f"ttft_s_{stat}"])
        assert np.isnan(summary(one_token)[f"tpot_s_{stat}"])
    assert unfinished["slo_attainment"] == 0.0
    empty = summary(checked({name: np.array([]) for name in REQUESTS}, REQUESTS))
    assert empty["num_requests"] == 0
    assert np.isnan(empty["slo_attainment"])
    assert np.isnan(empty["good_rps"])
    assert empty["transient"]


def steady(num: int, residence_s: float, gap_s: float = 1.0) -> Columns:
    """One arrival every `gap_s`, each answered after `residence_s`."""
    return requests(
        [
            {
                "arrival_s": gap_s * i,
                "first_output_s": gap_s * i + residence_s,
                "last_output_s": gap_s * i + residence_s,
                "output_len": 1,
            }
            for i in range(num)
        ]
    )


def test_in_a_steady_state_throughput_is_the_arrival_rate() -> None:
    """What arrives must leave: two requests per second in a window away from both ends."""
    row = summary(steady(401, 2.6, gap_s=0.5), run=RunConfig(warmup_s=20.25, cooldown_s=19.75))
    assert row["throughput_rps"] == pytest.approx(2.0)
    assert row["output_tokens_per_s"] == pytest.approx(2.0)
    assert row["good_rps"] == pytest.approx(2.0)


def test_throughput_of_an_overloaded_server_is_its_capacity_not_the_load() -> None:
    """Two arrivals per second into a server of one per second."""
    columns = requests(
        [
            {
                "arrival_s": 0.5 * i,
                "first_output_s": i + 1.0,
                "last_output_s": i + 1.0,
                "output_len": 1,
            }
            for i in range(201)
        ]
    )
    assert summary(columns)["throughput_rps"] == pytest.approx(1.0)


def test_a_batch_that_arrives_at_once_is_measured_until_its_last_output() -> None:
    """An offline batch has no window of arrivals: four requests in eight seconds."""
    columns = requests(
        [{"arrival_s": 0.0, "first_output_s": 1.0, "last_output_s": 2.0 * i} for i in range(1, 5)]
    )
    row = summary(columns)
    assert row["throughput_rps"] == row["good_rps"] == pytest.approx(0.5)
    assert row["output_tokens_per_s"] == pytest.approx(44 / 8)


def test_output_tokens_count_when_they_are_released() -> None:
    """Eleven tokens from 0 to 10 s: six by 5 s; and an answer released at once counts at once."""
    columns = requests(
        [
            {"arrival_s": 0.0, "first_output_s": 0.0, "last_output_s": 10.0},
            {"arrival_s": 1.0, "first_output_s": 4.0, "last_output_s": 4.0},
            {"arrival_s": 4.5, "first_output_s": 4.5, "last_output_s": 5.0},
            {"arrival_s": 5.0, "first_output_s": 6.0, "last_output_s": 8.0},
        ]
    )
    # the last one is not counted: rates end with the last output of those that are, at 5 s
    row = summary(columns, run=RunConfig(warmup_s=1.0, cooldown_s=0.5))
    # of the first one those at 2, 3, 4 and 5 s: four gaps from 1 s on
    assert row["output_tokens_per_s"] == pytest.approx((4 + 11 + 11) / 4)


def closed_loop(residence_s: list[float], num_users: int) -> Columns:
    """Requests of users who ask again when answered, each with its own residence time."""
    free = [0.0] * num_users
    rows = []
    for residence in residence_s:
        arrival = heapq.heappop(free)
        heapq.heappush(free, arrival + residence)
        rows.append(
            {
                "arrival_s": arrival,
                "first_output_s": arrival + residence / 2,
                "last_output_s": arrival + residence,
            }
        )
    return requests(rows)


@pytest.mark.parametrize(("num_users", "num"), [(32, 64), (32, 960), (1, 5), (7, 7)])
def test_a_closed_loop_serves_users_over_latency(num_users: int, num: int) -> None:
    """Little's law: 32 users and 1.327 s are 24.1 requests/s, however few requests there are."""
    columns = closed_loop([1.327] * num, num_users)
    row = summary(columns, rate_rps=NAN)
    assert row["throughput_rps"] == pytest.approx(num_users / 1.327)
    assert row["good_rps"] == row["throughput_rps"]
    assert row["output_tokens_per_s"] == pytest.approx(11 * num_users / 1.327)
    later = summary(columns, rate_rps=NAN, run=RunConfig(warmup_s=1.327 * (num // num_users // 4)))
    assert later["throughput_rps"] == pytest.approx(num_users / 1.327)


@given(
    residence_s=st.lists(st.floats(0.125, 8.0), min_size=1, max_size=40),
    num_users=st.integers(1, 50),
)
def test_no_closed_loop_serves_more_than_littles_law_allows(
    residence_s: list[float], num_users: int
) -> None:
    """Requests/s x mean latency is the mean number in the system, never more than the users."""
    row = summary(closed_loop(residence_s, num_users), rate_rps=NAN)
    in_system = row["throughput_rps"] * row["e2el_s_mean"]
    assert in_system <= num_users * (1 + 1e-12)
    assert in_system == pytest.approx(sum(residence_s) / row["rates_to_s"])
    assert row["good_rps"] == row["throughput_rps"]


@pytest.mark.parametrize("length_s", [0.0, 1e-7, 0.5, 5.0])
def test_a_burst_is_measured_over_the_work_not_the_arrivals(length_s: float) -> None:
    """96 requests within a short time, one server of 48 requests/s: not 1e9, and not 0."""
    arrival_s = np.linspace(0.0, length_s, 96)
    ends_s: list[float] = []
    for arrival in arrival_s:
        ends_s.append(max(float(arrival), ends_s[-1] if ends_s else 0.0) + 1 / 48)
    columns = requests(
        [
            {"arrival_s": a, "first_output_s": e, "last_output_s": e, "output_len": 1}
            for a, e in zip(arrival_s, ends_s, strict=True)
        ]
    )
    row = summary(columns, rate_rps=1e9)
    # A long run ends with its last arrival: there the 96th is not yet served.
    served = 96 if length_s < 2 else 95
    assert row["throughput_rps"] == row["good_rps"] == served / row["rates_to_s"]
    assert row["throughput_rps"] == pytest.approx(48 if length_s < 2 else 96 / length_s, rel=0.02)


def test_a_burst_after_a_pause_is_measured_from_the_burst_on() -> None:
    """A request at 0 to warm the cache, then four at once a minute later: two seconds of work."""
    columns = requests(
        [{"arrival_s": 0.0, "first_output_s": 0.5, "last_output_s": 0.5}]
        + [{"arrival_s": 60.0, "first_output_s": e, "last_output_s": e} for e in (61, 61, 62, 62)]
    )
    row = summary(columns, run=RunConfig(warmup_s=1.0))
    assert (row["rates_from_s"], row["rates_to_s"]) == (60.0, 62.0)
    assert row["throughput_rps"] == 2.0
    busy = {**columns, "last_output_s": np.array([1.5, 61, 61, 62, 62])}
    assert summary(busy, run=RunConfig(warmup_s=1.0))["rates_from_s"] == 1.0


def test_a_clock_that_is_stopped_ends_the_time_of_the_rates() -> None:
    """One of two users was answered once in ten seconds, the other not at all."""
    columns = requests(
        [{"arrival_s": 0.0, "first_output_s": 1.0, "last_output_s": 4.0}]
        + [{"arrival_s": t} for t in (0.0, 4.0)]
    )
    row = summary(columns, rate_rps=NAN, run=RunConfig(max_time_s=10.0))
    assert row["throughput_rps"] == pytest.approx(1 / 10)


@given(
    gaps_s=st.lists(st.floats(0.0, 3.0), min_size=1, max_size=60),
    residence_s=st.floats(0.01, 5.0),
    target_s=st.floats(0.01, 5.0),
)
def test_good_requests_are_some_of_the_finished(
    gaps_s: list[float], residence_s: float, target_s: float
) -> None:
    """Both are counted over the same time and by the same event, in long runs and short ones."""
    arrival_s = np.cumsum(gaps_s)
    columns = requests(
        [
            {"arrival_s": t, "first_output_s": t + residence_s, "last_output_s": t + residence_s}
            for t in arrival_s
        ]
    )
    row = summary(columns, slo=SloConfig(ttft_s=target_s))
    assert row["rates_from_s"] < row["rates_to_s"]
    expected = row["throughput_rps"] if residence_s <= target_s else 0.0
    # A latency equal to its target is met or not by the rounding of arrival + residence.
    assert abs(residence_s - target_s) < 1e-9 or row["good_rps"] == expected


def test_a_window_shorter_than_ten_residence_times_is_transient() -> None:
    """A window of exactly ten median residence times is not."""
    assert not summary(steady(101, 10.0))["transient"]
    assert summary(steady(101, 10.1))["transient"]
    assert summary(steady(100, 10.0))["transient"]


def test_a_run_that_left_most_requests_unfinished_is_transient() -> None:
    """Their residence is unknown and long; the median of the finished alone would hide it."""
    columns = steady(101, 1.0)
    columns["status"][::2] = "unfinished"
    columns["last_output_s"][::2] = NAN
    assert summary(columns)["transient"]


def test_rejected_requests_do_not_make_a_run_transient() -> None:
    """They never reside in the cluster."""
    columns = steady(101, 1.0)
    columns["status"][::2] = "rejected"
    columns["last_output_s"][::2] = NAN
    assert not summary(columns)["transient"]


def test_preemptions_are_those_of_the_window() -> None:
    """A sum over counted requests."""
    columns = steady(5, 1.0)
    columns["num_preemptions"][:] = [100, 1, 2, 3, 100]
    assert summary(columns, run=RunConfig(warmup_s=1.0, cooldown_s=1.0))["num_preemptions"] == 6


def test_the_share_from_the_cache_is_of_the_tokens_of_admitted_prompts() -> None:
    """Of the requests that count; blocks are counted by the instances."""
    columns = requests(
        [
            {"arrival_s": 1.0, "prompt_len": 100, "num_cached_tokens": 48, "scheduled_s": 2.0},
            {"arrival_s": 1.0, "prompt_len": 60, "num_cached_tokens": 32, "scheduled_s": 2.0},
            {"arrival_s": 9.0, "prompt_len": 40, "num_cached_tokens": 0, "scheduled_s": np.nan},
        ]
    )
    assert cached_token_share(columns) == 80 / 160
    assert cached_token_share(columns, np.array([False, True, True])) == 32 / 60
    assert cached_token_share(columns, np.array([False, False, True])) == 0
    instances = {"asked_blocks": np.array([6, 4]), "cached_blocks": np.array([3, 2])}
    assert cached_block_share(instances) == 0.5
    assert cached_block_share({name: 0 * column for name, column in instances.items()}) == 0


def test_all_times_doubled_double_every_latency_and_halve_every_rate() -> None:
    """A factor of two is exact in doubles."""
    rng = np.random.default_rng(0)
    arrival = np.sort(rng.uniform(0, 100, 200))
    columns = requests(
        [
            {"arrival_s": t, "first_output_s": t + a, "last_output_s": t + a + b}
            for t, a, b in zip(arrival, *rng.exponential(1.0, (2, 200)), strict=True)
        ]
    )
    slower = columns | {name: 2 * columns[name] for name in TIMES}
    slo = SloConfig(ttft_s=1.0, tpot_s=0.1)
    none = np.empty(0, np.int64)
    gaps = Gaps(np.empty(0), none, none, none, rng.exponential(1.0, 200), np.arange(200))
    longer = replace(gaps, single_s=2 * gaps.single_s)
    row = summary(columns, slo=slo, run=RunConfig(warmup_s=5.0), gaps=gaps)
    double = summary(
        slower, slo=SloConfig(ttft_s=2.0, tpot_s=0.2), run=RunConfig(warmup_s=10.0), gaps=longer
    )
    for name, value in row.items():
        if SWEEP[name].unit == "s":
            assert double[name] == 2 * value, name
        elif (name.endswith("_rps") and name != "rate_rps") or name.endswith("per_s"):
            assert double[name] == value / 2, name
        else:
            assert double[name] == value, name


@pytest.mark.parametrize("as_frame", [False, True])
def test_nothing_given_is_changed(as_frame: bool) -> None:
    """Neither sorted nor written."""
    shuffled = {name: column[::-1].copy() for name, column in HELD_BACK.items()}
    given_ = frame(shuffled, REQUESTS) if as_frame else shuffled
    before = {name: np.array(given_[name], copy=True) for name in REQUESTS}
    summary(given_)  # type: ignore[arg-type]
    for name in REQUESTS:
        pd.testing.assert_series_equal(
            pd.Series(given_[name]), pd.Series(before[name]), check_names=False, check_dtype=False
        )


def test_ecdf_of_a_few_values() -> None:
    """Steps at the distinct values; ties step at once; NaN never happens."""
    values = np.array([2.0, 1.0, 2.0, 4.0])
    x, y = ecdf(values)
    assert x.tolist() == [1.0, 2.0, 4.0]
    assert y.tolist() == [0.25, 0.75, 1.0]
    assert values.tolist() == [2.0, 1.0, 2.0, 4.0]
    x, y = ecdf([NAN, 3.0])
    assert (x.tolist(), y.tolist()) == ([3.0], [0.5])
    x, y = ecdf([])
    assert (x.size, y.size) == (0, 0)
    x, y = ecdf([NAN, NAN])
    assert (x.size, y.size) == (0, 0)


@examples(100)
@given(st.lists(st.one_of(st.floats(-1e6, 1e6), st.just(NAN)), min_size=1, max_size=30))
def test_ecdf_is_the_share_at_most_x(values: list[float]) -> None:
    """Its definition, checked by counting."""
    x, y = ecdf(values)
    for at, share in zip(x, y, strict=True):
        assert share == pytest.approx(sum(v <= at for v in values) / len(values))
    assert np.all(np.diff(x) > 0)


def spans(rows: list[tuple[int, float, float, float, int]]) -> Columns:
    """Spans of (instance, start_s, end_s, kv_usage, num_waiting)."""
    data = {name: np.zeros(len(rows)) for name in SPANS} | {
        "kind": np.array(["decode"] * len(rows), dtype=object)
    }
    for name, values in zip(
        ("instance", "start_s", "end_s", "kv_usage", "num_waiting"),
        zip(*rows, strict=True),
        strict=True,
    ):
        data[name] = np.array(values)
    return checked(data, SPANS)


TWO_INSTANCES = spans(
    [(1, 0.0, 3.0, 0.5, 4), (0, 0.0, 1.0, 0.2, 2), (0, 2.0, 3.0, 0.6, 1), (0, 3.0, 5.0, 0.0, 0)]
)


@pytest.mark.parametrize("as_frame", [False, True])
def test_levels_are_added_and_shares_averaged_over_instances(as_frame: bool) -> None:
    """An instance's level is that of its last span end; two ends at one time are one step."""
    given_ = frame(TWO_INSTANCES, SPANS) if as_frame else TWO_INSTANCES
    times, waiting = level_over_time(given_, "num_waiting")
    assert times.tolist() == [1.0, 3.0, 5.0]
    assert waiting.tolist() == [2.0, 5.0, 4.0]
    times, usage = level_over_time(given_, "kv_usage")
    assert times.tolist() == [1.0, 3.0, 5.0]
    assert usage == pytest.approx([0.1, 0.55, 0.25])


def test_lanes_of_an_instance_have_levels_of_their_own() -> None:
    """Data-parallel ranks whose steps end together: counts are added, shares averaged."""
    rows = [(0, 0.0, 1.0, 0.2, 1), (0, 0.0, 1.0, 0.6, 4), (0, 1.0, 2.0, 0.4, 2), (1, 0, 2, 0.8, 8)]
    ranks = {**spans(rows), "lane": np.array([0, 1, 0, 0], dtype=np.int32)}
    times, waiting = level_over_time(ranks, "num_waiting")
    assert times.tolist() == [1.0, 2.0]
    assert waiting.tolist() == [5.0, 14.0]  # 1 + 4, then 2 + 4 + 8
    usage = level_over_time(ranks, "kv_usage")[1]
    assert usage == pytest.approx([0.4 / 2, (0.5 + 0.8) / 2])


def test_instances_can_be_chosen_and_idle_ones_count_as_empty() -> None:
    """The usage of a pool includes its members that never took a step."""
    times, usage = level_over_time(TWO_INSTANCES, "kv_usage", instances=[0, 7])
    assert times.tolist() == [1.0, 3.0, 5.0]
    assert usage == pytest.approx([0.1, 0.3, 0.0])
    times, _ = level_over_time(TWO_INSTANCES, "kv_usage", instances=[7])
    assert times.size == 0
    with pytest.raises(ValueError, match="not a level"):
        level_over_time(TWO_INSTANCES, "num_decodes")


def test_an_emptied_cluster_is_exactly_empty() -> None:
    """Differences of shares do not cancel exactly; the level must not end below nothing."""
    usage = level_over_time(
        spans([(0, 0, 1, 0.1, 0), (1, 0, 2, 0.2, 0), (0, 1, 3, 0.0, 0), (1, 2, 4, 0.0, 0)]),
        "kv_usage",
    )[1]
    assert usage.min() >= 0.0
    assert usage[-1] == pytest.approx(0.0, abs=1e-12)


def test_time_averages_by_hand() -> None:
    """2 from 1 to 3 s, then 5 for ever, 0 before."""
    times, levels = np.array([1.0, 3.0]), np.array([2.0, 5.0])
    assert time_average(times, levels, 1.0, 3.0) == pytest.approx(2.0)
    assert time_average(times, levels, 0.0, 4.0) == pytest.approx(9 / 4)
    assert time_average(times, levels, 2.0, 2.5) == pytest.approx(2.0)
    assert time_average(times, levels, 10.0, 20.0) == pytest.approx(5.0)
    assert time_average(times, levels, -2.0, 0.0) == pytest.approx(0.0)
    assert binned_average(times, levels, [0.0, 2.0, 4.0]) == pytest.approx([1.0, 3.5])
    assert time_average(np.array([]), np.array([]), 0.0, 1.0) == 0.0
    with pytest.raises(ValueError, match="must rise"):
        time_average(times, levels, 3.0, 3.0)


def test_a_time_average_weighs_by_time_where_a_mean_over_rows_would_not() -> None:
    """Three short spans full and one long one empty: nearly empty."""
    rows = [
        (0, 0.0, 1.0, 1.0, 0),
        (0, 1.0, 2.0, 1.0, 0),
        (0, 2.0, 3.0, 0.0, 0),
        (0, 3.0, 100.0, 0.0, 0),
    ]
    times, usage = level_over_time(spans(rows), "kv_usage")
    assert time_average(times, usage, 0.0, 100.0) == pytest.approx(0.02)


@examples(100)
@given(
    st.lists(
        st.tuples(st.floats(0, 100), st.floats(0, 50)),
        min_size=1,
        max_size=40,
    )
)
def test_littles_law_holds_exactly_when_all_have_left(visits: list[tuple[float, float]]) -> None:
    """Mean number in the system = arrival rate x mean residence, over the whole horizon."""
    arrival = np.array([a for a, _ in visits])
    residence = np.array([r for _, r in visits])
    horizon = float(np.max(arrival + residence)) + 1.0
    times, counts = count_over_time(arrival, arrival + residence)
    mean_in_system = time_average(times, counts, 0.0, horizon)
    assert mean_in_system == pytest.approx(len(visits) / horizon * residence.mean(), abs=1e-9)
    assert counts.min() >= 0
    assert counts[-1] == 0


def test_waiting_requests_are_those_arrived_and_not_yet_scheduled() -> None:
    """The rejected never wait; the never scheduled wait to the end. Little's law for the rest."""
    columns = requests(
        [
            {"arrival_s": 0.0, "scheduled_s": 2.0},
            {"arrival_s": 1.0, "scheduled_s": 4.0},
            {"arrival_s": 1.5, "scheduled_s": NAN, "status": "rejected"},
            {"arrival_s": 5.0, "scheduled_s": NAN},
        ]
    )
    times, counts = waiting_over_time(columns)
    assert times.tolist() == [0.0, 1.0, 2.0, 4.0, 5.0]
    assert counts.tolist() == [1.0, 2.0, 1.0, 0.0, 1.0]
    assert time_average(times, counts, 0.0, 5.0) == pytest.approx((2.0 + 3.0) / 5.0)


def test_queued_requests_are_those_routed_and_not_yet_scheduled() -> None:
    """What a router holds back is not in an instance's queue; queues of one instance alone."""
    columns = requests(
        [
            {"arrival_s": 0.0, "routed_s": 1.0, "scheduled_s": 2.0, "prefill_instance": 0},
            {"arrival_s": 1.0, "routed_s": 1.0, "scheduled_s": 4.0, "prefill_instance": 1},
            {"arrival_s": 2.0, "routed_s": NAN, "scheduled_s": NAN, "prefill_instance": -1},
            {"arrival_s": 1.5, "routed_s": 1.5, "scheduled_s": NAN, "status": "rejected"},
        ]
    )
    times, counts = queued_over_time(columns)
    assert times.tolist() == [1.0, 2.0, 4.0]
    assert counts.tolist() == [2.0, 1.0, 0.0]
    times, counts = queued_over_time(columns, instances=[1])
    assert times.tolist() == [1.0, 4.0]


def test_bins_add_up_to_the_whole() -> None:
    """The mean of equal bins is the mean of their union."""
    rng = np.random.default_rng(1)
    times: FloatArray = np.sort(rng.uniform(0, 10, 50))
    levels: FloatArray = rng.integers(0, 9, 50).astype(np.float64)
    edges = np.linspace(0.0, 12.0, 25)
    assert binned_average(times, levels, edges).mean() == pytest.approx(
        time_average(times, levels, 0.0, 12.0)
    )


LATENCIES = st.floats(min_value=0, max_value=1e300) | st.just(math.inf)


@given(st.lists(LATENCIES, min_size=1, max_size=9))
def test_the_median_is_that_of_numpy(values: list[float]) -> None:
    """With infinite values too, which stand for requests that never end."""
    assert median(np.array(values)) == np.median(values)


@given(
    st.lists(st.floats(min_value=-1e9, max_value=1e9), min_size=1, max_size=30),
    st.lists(st.floats(min_value=0, max_value=1), min_size=1, max_size=4),
)
def test_quantiles_are_those_of_numpy(values: list[float], shares: list[float]) -> None:
    """To the bit: frames written before and after say the same."""
    assert quantiles(np.array(values), shares) == np.quantile(values, shares).tolist()
