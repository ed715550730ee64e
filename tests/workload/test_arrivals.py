"""Each arrival process does what its label says; two rates meet the same requests."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from helpers.refusals import refused
from simcluster.errors import ConfigError
from simcluster.testing.examples import examples
from simcluster.units import TICK_S, TICKS_PER_S, FloatArray
from simcluster.workload import ARRIVALS, ArrivalProcess, Workload, WorkloadSettings, build
from simcluster.workload.base import EndlessArrivals
from simcluster.workload.closed_loop import ClosedLoopArrivals
from simcluster.workload.lengths import FixedLengths, LognormalLengths
from simcluster.workload.profiles import (
    OnOffArrivals,
    ScheduleArrivals,
    SchedulePiece,
    inverse_cumulative_rate,
)
from simcluster.workload.renewal import ConstantArrivals, GammaArrivals, PoissonArrivals

SEEDS = range(20)
SCHEDULE = ScheduleArrivals(
    pieces=(
        SchedulePiece(duration_s=100, rate_rps=2),
        SchedulePiece(duration_s=50, rate_rps=0),
        SchedulePiece(duration_s=25, rate_rps=16),
    )
)
ENDLESS: list[EndlessArrivals] = [
    PoissonArrivals(),
    GammaArrivals(burstiness=0.3),
    ConstantArrivals(),
    OnOffArrivals(on_s=5, off_s=20, off_share=0.1),
    SCHEDULE,
]


def kind(process: EndlessArrivals) -> str:
    """Name of a parametrised test."""
    return process.kind


def workload(process: ArrivalProcess, *, seed: int = 0, **keys: float | None) -> Workload:
    """Requests of `process` with lengths that are drawn."""
    rate_rps = keys.pop("rate_rps", None)
    lengths = LognormalLengths(
        prompt_median=300, prompt_sigma=1, output_median=80, output_sigma=0.7
    )
    return build(
        WorkloadSettings(lengths=lengths, arrivals=process, **keys),  # type: ignore[arg-type]
        seed=seed,
        rate_rps=rate_rps,
        max_model_len=4096,
    )


def assert_mean(values: list[float], expected: float) -> None:
    """The mean over seeds is `expected`, at four standard errors."""
    error = np.std(values, ddof=1) / np.sqrt(len(values))
    assert abs(np.mean(values) - expected) < 4 * error, (np.mean(values), expected, error)


def gaps(process: EndlessArrivals, seed: int, num_requests: int = 20_000) -> FloatArray:
    """Gaps at 4 requests/s, the first before the first request."""
    return np.diff(process.times(num_requests, 4.0, seed), prepend=0.0)


@pytest.mark.parametrize(
    ("process", "cv"),
    [
        (PoissonArrivals(), 1.0),
        (GammaArrivals(burstiness=0.25), 2.0),
        (GammaArrivals(burstiness=4.0), 0.5),
        (GammaArrivals(cv=1.5), 1.5),
    ],
)
def test_gaps_have_the_mean_and_variation_of_their_label(
    process: EndlessArrivals, cv: float
) -> None:
    """Mean 1 / rate; coefficient of variation 1, 1 / sqrt(burstiness), or as given."""
    drawn = [gaps(process, seed) for seed in SEEDS]
    assert_mean([float(g.mean()) for g in drawn], 0.25)
    assert_mean([float(g.var(ddof=1)) for g in drawn], (0.25 * cv) ** 2)


@pytest.mark.parametrize(
    ("process", "law"),
    [
        (PoissonArrivals(), stats.expon(scale=0.25)),
        (GammaArrivals(burstiness=0.5), stats.gamma(0.5, scale=0.5)),
    ],
)
def test_gaps_follow_their_distribution(process: EndlessArrivals, law: stats.rv_continuous) -> None:
    """Kolmogorov-Smirnov against SciPy's distribution, 200 uncorrelated gaps apart."""
    drawn = gaps(process, 1, 50_000)
    assert stats.kstest(drawn, law.cdf).pvalue > 1e-3
    assert abs(np.corrcoef(drawn[1:], drawn[:-1])[0, 1]) < 4 / np.sqrt(len(drawn))


@pytest.mark.parametrize(
    ("process", "dispersion"),
    [(PoissonArrivals(), 1.0), (GammaArrivals(burstiness=0.25), 4.0), (ConstantArrivals(), 0.0)],
)
def test_counts_have_the_dispersion_of_their_law(
    process: EndlessArrivals, dispersion: float
) -> None:
    """Variance over mean of counts in long windows: 1 for Poisson, cv^2 for a renewal process."""
    ratios = []
    for seed in SEEDS:
        times = process.times(100_000, 1.0, seed)
        counts = np.histogram(times, bins=np.arange(0.5, times[-1], 400.0))[0]
        ratios.append(float(counts.var(ddof=1) / counts.mean()))
    if dispersion == 0:
        assert max(ratios) == 0
    else:
        assert_mean(ratios, dispersion)


def test_constant_arrivals_are_equally_spaced() -> None:
    """Request k arrives at (k + 1) / rate."""
    requests = workload(ConstantArrivals(), rate_rps=8, num_requests=5)
    assert requests.arrival_s.tolist() == [0.125, 0.25, 0.375, 0.5, 0.625]


def test_gamma_with_burstiness_one_is_as_regular_as_poisson() -> None:
    """A gamma distribution of shape 1 is the exponential one."""
    drawn = gaps(GammaArrivals(burstiness=1.0), 2, 50_000)
    assert stats.kstest(drawn, stats.expon(scale=0.25).cdf).pvalue > 1e-3


def test_bursts_and_pauses_keep_their_length_and_the_mean_rate() -> None:
    """With silent pauses every arrival is in a burst; the mean over both is the rate asked for."""
    process = OnOffArrivals(on_s=10, off_s=30)
    counts = []
    for seed in SEEDS:
        arrival_s = workload(process, seed=seed, rate_rps=3, duration_s=4000).arrival_s
        assert (arrival_s % 40 <= 10).all()
        counts.append(len(arrival_s) / 4000)
    assert_mean(counts, 3.0)


def test_pauses_have_their_share_of_the_rate_of_bursts() -> None:
    """10 s at r and 30 s at r / 5: 10 of 16 requests arrive in bursts."""
    process = OnOffArrivals(on_s=10, off_s=30, off_share=0.2)
    shares = []
    for seed in SEEDS:
        arrival_s = workload(process, seed=seed, rate_rps=3, duration_s=4000).arrival_s
        shares.append(float(np.mean(arrival_s % 40 <= 10)))
    assert_mean(shares, 10 / 16)


def test_a_schedule_gives_each_piece_its_requests() -> None:
    """Counts per piece are Poisson with mean duration x rate; nothing in a piece of rate 0."""
    counts = np.array(
        [
            np.histogram(workload(SCHEDULE, seed=seed).arrival_s, bins=[0, 100, 150, 175])[0]
            for seed in range(100)
        ]
    )
    assert (counts[:, 1] == 0).all()
    for piece, expected in ((0, 200), (2, 400)):
        assert abs(counts[:, piece].mean() - expected) < 4 * np.sqrt(expected / 100)
        # the variance of 100 Poisson counts over its mean: 1 +- sqrt(2 / 99)
        assert abs(counts[:, piece].var(ddof=1) / expected - 1) < 4 * np.sqrt(2 / 99)


def test_a_schedule_without_rate_or_number_runs_once_at_its_own_rates() -> None:
    """One pass: 600 requests expected in 175 s, and the offered rate is the schedule's mean."""
    requests = workload(SCHEDULE)
    assert requests.rate_rps == pytest.approx(600 / 175)
    assert 175 - 25 < requests.arrival_s[-1] < 175
    assert abs(requests.num_requests - 600) < 4 * np.sqrt(600)


def test_a_schedule_repeats_when_more_requests_are_asked_for() -> None:
    """After the last piece the first follows."""
    arrival_s = workload(SCHEDULE, num_requests=6000).arrival_s
    assert abs(arrival_s[-1] - 1750) < 4 * np.sqrt(6000) / (600 / 175)
    inside = arrival_s % 175
    assert not ((inside > 100) & (inside < 150)).any()


def test_a_rate_scales_the_rates_of_a_schedule_and_not_its_clock() -> None:
    """At twice the mean rate the pause is where it was and the counts double."""
    requests = workload(SCHEDULE, rate_rps=2 * 600 / 175, duration_s=175)
    counts = np.histogram(requests.arrival_s, bins=[0, 100, 150, 175])[0]
    assert counts[1] == 0
    assert abs(counts[0] - 400) < 4 * 20
    assert abs(counts[2] - 800) < 4 * np.sqrt(800)


@pytest.mark.parametrize("process", ENDLESS[:3], ids=kind)
def test_the_same_requests_at_every_rate(process: EndlessArrivals) -> None:
    """Gaps are scaled by the ratio of the rates, to half a tick of the grid; lengths are equal."""
    slow = workload(process, rate_rps=0.7, num_requests=3000)
    fast = workload(process, rate_rps=5.6, num_requests=3000)
    assert np.abs(slow.arrival_s - 8 * fast.arrival_s).max() <= 4.5 * TICK_S
    assert (slow.prompt_len == fast.prompt_len).all()
    assert (slow.output_len == fast.output_len).all()


@pytest.mark.parametrize("process", ENDLESS[3:], ids=kind)
def test_phases_stay_and_requests_are_the_same_at_every_rate(process: EndlessArrivals) -> None:
    """Where the rate is scaled, the expected number of requests before each one is the same."""
    if isinstance(process, ScheduleArrivals):
        durations_s = np.array([p.duration_s for p in process.pieces])
        shares = np.array([p.rate_rps for p in process.pieces])
    else:
        assert isinstance(process, OnOffArrivals)
        durations_s = np.array([process.on_s, process.off_s])
        shares = np.array([1.0, process.off_share])
    edges_s = np.concatenate(([0.0], np.cumsum(durations_s)))
    filled = np.concatenate(([0.0], np.cumsum(durations_s * shares)))

    def number_before(times_s: FloatArray, rate_rps: float) -> FloatArray:
        cycles, rest_s = np.divmod(times_s, edges_s[-1])
        shares_of_cycle: FloatArray = np.interp(rest_s, edges_s, filled) / filled[-1]
        number: FloatArray = (cycles + shares_of_cycle) * edges_s[-1] * rate_rps
        return number

    slow, fast = process.times(3000, 0.7, 5), process.times(3000, 5.6, 5)
    np.testing.assert_allclose(number_before(slow, 0.7), number_before(fast, 5.6), rtol=1e-9)


@pytest.mark.parametrize("process", ENDLESS, ids=kind)
def test_a_longer_run_begins_with_the_same_requests(process: EndlessArrivals) -> None:
    """num_requests and duration_s only say where the same sequence ends."""
    short = workload(process, rate_rps=4, num_requests=100)
    long = workload(process, rate_rps=4, num_requests=5000)
    timed = workload(process, rate_rps=4, duration_s=1000)
    num = min(timed.num_requests, 5000)
    assert num > 1000
    for name in ("arrival_s", "prompt_len", "output_len"):
        assert (getattr(short, name) == getattr(long, name)[:100]).all()
        assert (getattr(timed, name)[:num] == getattr(long, name)[:num]).all()
    assert timed.arrival_s[-1] < 1000
    assert long.arrival_s[timed.num_requests] >= 1000


def test_seeds_give_different_requests() -> None:
    """Two seeds share neither arrivals nor lengths."""
    one, other = (workload(PoissonArrivals(), seed=s, rate_rps=1) for s in (0, 1))
    assert not (one.arrival_s == other.arrival_s).any()
    assert (one.prompt_len != other.prompt_len).mean() > 0.9


def test_lengths_do_not_depend_on_the_arrivals() -> None:
    """Streams are named: another arrival process leaves the lengths as they are."""
    one = workload(PoissonArrivals(), rate_rps=1)
    other = workload(OnOffArrivals(on_s=1, off_s=1), rate_rps=1)
    assert (one.prompt_len == other.prompt_len).all()
    assert (one.output_len == other.output_len).all()


DIGEST = """
import hashlib
from simcluster.workload import WorkloadSettings, build
from simcluster.workload.lengths import LognormalLengths
from helpers.refusals import refused
from simcluster.workload.renewal import GammaArrivals
lengths = LognormalLengths(prompt_median=300, prompt_sigma=1, output_median=80, output_sigma=0.7)
requests = build(
    WorkloadSettings(lengths=lengths, arrivals=GammaArrivals(cv=1.5)),
    seed=11, rate_rps=3.0, max_model_len=4096,
)
data = b"".join(a.tobytes() for a in (requests.arrival_s, requests.prompt_len, requests.output_len))
print(hashlib.sha256(data).hexdigest())
"""


def test_the_same_seed_gives_the_same_requests_in_another_interpreter() -> None:
    """Nothing hangs on the salt of ``hash()`` or on what was drawn before."""
    requests = workload(GammaArrivals(cv=1.5), seed=11, rate_rps=3.0)
    arrays = (requests.arrival_s, requests.prompt_len, requests.output_len)
    here = hashlib.sha256(b"".join(a.tobytes() for a in arrays)).hexdigest()
    env = {**os.environ, "PYTHONHASHSEED": "77", "PYTHONPATH": os.pathsep.join(sys.path)}
    there = subprocess.run(
        [sys.executable, "-c", DIGEST], capture_output=True, text=True, check=True, env=env
    )
    assert there.stdout.strip() == here


def test_a_closed_loop_has_its_concurrency_and_no_clock() -> None:
    """All arrivals are 0: the engine lets the next request in when one finishes."""
    requests = workload(ClosedLoopArrivals(concurrency=16), num_requests=50)
    assert requests.concurrency == 16
    assert requests.rate_rps is None
    assert requests.arrival_s.tolist() == [0.0] * 50
    assert workload(ClosedLoopArrivals(concurrency=16)).num_requests == 2000


@pytest.mark.parametrize("name", ["rate_rps", "duration_s"])
def test_a_closed_loop_refuses_a_rate_and_a_duration(name: str) -> None:
    """Both are results there."""
    with pytest.raises(ConfigError) as caught:
        workload(ClosedLoopArrivals(concurrency=1), seed=0, **{name: 2.0})
    assert caught.value.key == f"workload.{name}"


@pytest.mark.parametrize(
    ("make", "key"),
    [
        (lambda: GammaArrivals(), "workload.arrivals.burstiness"),
        (lambda: GammaArrivals(cv=1, burstiness=1), "workload.arrivals.burstiness"),
        (
            lambda: ScheduleArrivals(pieces=(SchedulePiece(duration_s=1, rate_rps=0),)),
            "workload.arrivals.pieces",
        ),
    ],
)
def test_settings_that_say_nothing_or_two_things_are_refused(
    make: Callable[[], object], key: str
) -> None:
    """The message names the key and is one line."""
    with refused(key=key):
        make()


@given(
    pieces=st.lists(
        st.tuples(st.floats(0.01, 1e4), st.one_of(st.just(0.0), st.floats(0.01, 1e3))),
        min_size=1,
        max_size=5,
    ).filter(lambda pieces: any(rate > 0 for _, rate in pieces)),
    points=st.lists(st.floats(0, 1e5), min_size=1, max_size=20).map(sorted),
)
@examples(200)
def test_the_inverse_cumulative_rate_inverts_the_cumulative_rate(
    pieces: list[tuple[float, float]], points: list[float]
) -> None:
    """Law: sorted, never in a piece of rate 0, and as many are expected by then as asked for."""
    durations_s, rates_rps = (np.array(column) for column in zip(*pieces, strict=True))
    times_s = inverse_cumulative_rate(np.array(points), durations_s, rates_rps)
    assert (np.diff(times_s) >= 0).all()
    edges_s = np.concatenate(([0.0], np.cumsum(durations_s)))
    filled = np.concatenate(([0.0], np.cumsum(durations_s * rates_rps)))
    cycles, rest_s = np.divmod(times_s, edges_s[-1])
    expected = cycles * filled[-1] + np.interp(rest_s, edges_s, filled)
    np.testing.assert_allclose(expected, points, rtol=1e-9, atol=1e-9 * filled[-1])


@given(
    process=st.one_of(
        st.sampled_from([*ENDLESS, ClosedLoopArrivals(concurrency=3)]),
        st.floats(0.01, 100).map(lambda b: GammaArrivals(burstiness=b)),
        st.tuples(st.floats(0.1, 100), st.floats(0.1, 100), st.floats(0, 0.99)).map(
            lambda p: OnOffArrivals(on_s=p[0], off_s=p[1], off_share=p[2])
        ),
    ),
    seed=st.integers(0, 2**32),
    rate_rps=st.floats(0.01, 1e4),
    num_requests=st.integers(1, 300),
)
@examples(100)
def test_every_workload_keeps_the_laws(
    process: EndlessArrivals | ClosedLoopArrivals, seed: int, rate_rps: float, num_requests: int
) -> None:
    """Sorted grid times from 0 up, lengths from 1 up, arrays of one length that cannot change."""
    closed = isinstance(process, ClosedLoopArrivals)
    requests = workload(
        process,
        seed=seed,
        rate_rps=None if closed else rate_rps,
        num_requests=num_requests,
    )
    assert requests.num_requests == num_requests
    assert (np.diff(requests.arrival_s) >= 0).all()
    assert requests.arrival_s[0] >= 0
    ticks = requests.arrival_s * TICKS_PER_S
    assert (ticks == np.rint(ticks)).all()
    assert requests.prompt_len.min() >= 1
    assert requests.output_len.min() >= 1
    assert (requests.rejected == (requests.prompt_len + requests.output_len > 4096)).all()
    for array in (requests.arrival_s, requests.prompt_len, requests.output_len, requests.rejected):
        assert array.shape == (num_requests,)
        assert not array.flags.writeable


def test_every_process_is_in_the_registry_under_its_kind() -> None:
    """A process that is not there cannot be written in a scenario."""
    assert {"poisson", "gamma", "constant", "on-off", "schedule", "closed-loop"} <= set(ARRIVALS)
    for process in ENDLESS:
        assert ARRIVALS[process.kind] is type(process)


def test_a_rate_is_needed_where_the_process_has_none() -> None:
    """Poisson arrivals of no rate are refused; a rate in the settings will do."""
    with pytest.raises(ConfigError, match="poisson arrivals need a rate"):
        workload(PoissonArrivals())
    assert workload(PoissonArrivals(), num_requests=3, rate_rps=2.5).rate_rps == 2.5
    lengths = FixedLengths(prompt_len=1, output_len=1)
    own = WorkloadSettings(lengths=lengths, rate_rps=2.5)
    assert build(own, seed=0, rate_rps=None, max_model_len=8).rate_rps == 2.5
    assert build(own, seed=0, rate_rps=5.0, max_model_len=8).rate_rps == 5.0
