"""Racing: candidates meet the same requests, in rounds that grow longer while the field shrinks.

In each round a candidate's rate is sought at which attainment crosses the target, on few requests
first. Whoever is behind by more than chance explains leaves (successive halving, Jamieson and
Talwalkar, AISTATS 2016). All use the same draws, so that what differs is the candidate.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from simcluster.config import SloConfig
from simcluster.frames.metrics import (
    attainments,
    mean_gpus,
    measured_window,
    members_of,
    met_targets,
    request_metrics,
)
from simcluster.frames.schema import Columns
from simcluster.runs.cell import Cell
from simcluster.runs.result import Result
from simcluster.runs.simulate import run, workload_of
from simcluster.scenario.scenario import Scenario
from simcluster.studies.goodput.locate import Bracket, locate
from simcluster.studies.goodput.rules import Walk
from simcluster.studies.goodput.runs import answer
from simcluster.units import FloatArray
from simcluster.workload.base import BoolArray

WARMUP: Final = 0.1
"""Share of the arrival time that is not counted."""
WALK: Final = Walk(step=1.35, far=3.0, growth=1.2, margin=0.15)
"""How a search that knows little goes from rate to rate."""
_NEAR: Final = 1.2
TRUSTED: Final = (0.08, 0.05, 0.03)
"""Distance (logarithm of the rate) from its run up to which a crossing is taken from that run and a
known slope, in the first, second and third round. The root mean square error is 1 to 2 % up to
0.03, 2 to 3 % up to 0.05, 3 to 5 % up to 0.08 (290 runs of the third rounds of
``planner_question.toml`` and ``rank_32gpus.toml``, with slopes of their second, 2026-12-01)."""
_SLOPES: Final = (8.0, 40.0)
"""Least and largest slope that is believed: those of short runs are often far off."""
_MOST_STEP: Final = 0.25
"""Farthest move along a known slope, in logarithms of the rate."""
_MOST_RUNS: Final = 9
_FEW: Final = 3  # runs that follow a known slope, before the search goes without it
_LOWEST: Final = 1e-3  # of the first guess: below it the targets are missed at any rate


@dataclass(frozen=True, slots=True, kw_only=True)
class RaceRun:
    """One run of a candidate.

    Attributes
    ----------
    attainment, ttft_attainment, tpot_attainment, itl_attainment, e2el_attainment : float
        Shares of the counted requests within all targets, and within each, 0 to 1. Where targets
        have percentiles of their own, `attainment` is that of the target that is farthest from its
        own, moved (in log odds) to the one that ``slo.attainment`` asks for.
    """

    rate_rps: float
    """Offered rate (requests/s)."""
    num_requests: int
    """Requests that arrived."""
    attainment: float
    ttft_attainment: float
    tpot_attainment: float
    ttft_s: float
    tpot_s: float
    """Latencies that the wanted share of the finished requests gets (s); NaN if none has any."""
    residence_s: float
    """Mean time in the system of the finished requests (s); NaN if none has finished."""
    peak_kv_usage: float
    """Largest share of KV blocks in use in any instance that decodes, 0 to 1."""
    num_preemptions: int
    """Preemptions."""
    mean_gpus: float = math.nan
    """GPUs held, mean over what is counted; NaN where nobody counted them."""
    itl_attainment: float = 1.0
    e2el_attainment: float = 1.0

    @property
    def log_odds(self) -> float:
        """Log odds of the attainment."""
        return log_odds(self.attainment, self.num_requests)


@dataclass(frozen=True, slots=True, kw_only=True)
class Crossing:
    """Where attainment crosses the target, on one draw of requests."""

    name: str
    """The candidate."""
    goodput_rps: float
    """Interpolated (requests/s); 0 if the targets are missed at any rate."""
    low_rps: float
    high_rps: float
    """Highest rate seen to reach the target and lowest seen to miss it (requests/s)."""
    probes: tuple[RaceRun, ...]
    """The runs, in the order they were made."""
    num_requests: int
    """Requests of all runs."""

    known_slope: float = math.nan
    """Of an earlier search, which this one went by; NaN if there was none."""

    @property
    def around(self) -> Bracket[RaceRun]:
        """The two runs next to the crossing, one of them None where the search did without it."""
        by_rate = {p.rate_rps: p for p in self.probes}
        return Bracket(by_rate.get(self.low_rps), by_rate.get(self.high_rps))

    @property
    def slope(self) -> float:
        """Fall of the log odds of attainment per unit of the logarithm of the rate, > 0.

        That of an earlier search where the runs of this one lie on one side of the target; NaN
        where there is none, or attainment did not fall.
        """
        own = self.around.slope
        return self.known_slope if math.isnan(own) else own

    @property
    def nearest(self) -> RaceRun | None:
        """The run at the rate nearest to the goodput; None if there is no goodput or no run."""
        if not 0 < self.goodput_rps < math.inf:
            return None
        near = [p for p in (self.around.low, self.around.high) if p is not None]
        return min(near, key=lambda p: abs(math.log(p.rate_rps / self.goodput_rps)), default=None)

    @property
    def mean_gpus(self) -> float:
        """GPUs held in the run at the highest rate that reached the target, or next to it."""
        known = self.around.low or self.nearest
        return math.nan if known is None else known.mean_gpus


def probe(scenario: Scenario, cell: Cell) -> RaceRun:
    """Simulate a run of a candidate.

    The clock stops when every request that has not finished has missed its targets.
    """
    assert cell.rate_rps is not None
    slo, workload = scenario.environment.slo.loosest(), workload_of(scenario, cell)
    end_s = float(workload.arrival_s[-1])
    patience_s = math.inf
    if slo.ttft_s is not None and slo.tpot_s is not None:
        patience_s = slo.ttft_s + slo.tpot_s * float(workload.output_len.max())
    result = run(
        scenario.environment,
        scenario.strategy(cell.strategy),
        workload,
        seed=cell.seed,
        max_time_s=end_s + patience_s if math.isfinite(patience_s) else None,
    )
    return _seen(scenario, result, cell.rate_rps)


def _seen(scenario: Scenario, result: Result, rate_rps: float) -> RaceRun:
    slo = scenario.environment.slo
    requests, instances = result.columns["requests"], result.columns["instances"]
    end_s = float(requests["arrival_s"][-1])
    counted = measured_window(requests, WARMUP * end_s, 0.0)
    met = attainments(requests, slo, counted)
    if slo.percentiles is not None:
        met["slo"] = _moved_share(requests, slo, counted)
    latency = request_metrics(requests, slo.metric)
    decodes = instances["pool"] != "prefill"

    def finished(name: str) -> FloatArray:
        values: FloatArray = latency[name][counted]
        return values[~np.isnan(values)]

    def level(key: str) -> float:
        values = finished(f"{key}_s")
        return float(np.quantile(values, slo.wanted(key))) if values.size else math.nan

    residences = finished("e2el_s")
    return RaceRun(
        rate_rps=rate_rps,
        num_requests=len(requests["arrival_s"]),
        attainment=met["slo"],
        ttft_attainment=met["ttft"],
        tpot_attainment=met["tpot"],
        ttft_s=level("ttft"),
        tpot_s=level("tpot"),
        residence_s=float(residences.mean()) if residences.size else math.nan,
        peak_kv_usage=float(instances["peak_kv_usage"][decodes].max()),
        num_preemptions=int(instances["num_preemptions"].sum()),
        mean_gpus=mean_gpus(instances, WARMUP * end_s, end_s),
        itl_attainment=met["itl"],
        e2el_attainment=met["e2el"],
    )


def _moved_share(requests: Columns, slo: SloConfig, counted: BoolArray) -> float:
    """Return the share of the target that is farthest from its percentile, on one scale.

    The scale is that of ``slo.attainment``: shares are moved by the difference of the log odds that
    are wanted. With classes the share of the class where it is least.
    """
    met, num = met_targets(requests, slo), int(counted.sum())
    groups = [counted & own for own in members_of(requests, slo).values()] or [counted]
    least = min(
        log_odds(float(met[key][group].mean()), num) - log_odds(slo.wanted(key), num)
        for key in slo.counted
        for group in groups
        if group.any()
    )
    return 1 / (1 + math.exp(-least - log_odds(slo.attainment, num)))


Search = Generator[list[Cell], list[RaceRun], Crossing]
"""A search for the goodput of a candidate: yields the run that it wants next."""


def search(
    start: Cell,
    attainment: float,
    *,
    step: float = WALK.step,
    near: float = _NEAR,
    uninteresting_rps: float = 0.0,
    slope: float = math.nan,
    trusted: float = TRUSTED[-1],
) -> Search:
    """Find where the attainment of a candidate crosses the target.

    Parameters
    ----------
    start : Cell
        The candidate, where to start (requests/s, > 0), and seed and length of all runs.
    attainment : float
        The target, above 0 and below 1.
    step, near : float
        Ratio of two rates of a search that knows no bound yet; ratio of the two bounds at which it
        ends, > 1.
    uninteresting_rps : float
        A candidate that is seen to miss the target below this is not looked at more closely.
    slope : float
        About how steeply the log odds fall over the log rate, from an earlier search; NaN if that
        is not known. A run that is close to the target then ends the search.
    trusted : float
        How close (`TRUSTED`).

    Yields
    ------
    list of Cell
        One run; its outcome is sent back.

    Notes
    -----
    On one draw the attainment is a function of the rate, nearly monotone. Its log odds are taken
    as straight in the logarithm of the rate, between the closest two rates around the target.
    """
    assert start.rate_rps is not None
    assert start.num_requests is not None
    guess_rps, num_requests = start.rate_rps, start.num_requests
    target = log_odds(attainment, num_requests)
    probes: list[RaceRun] = []

    def look(rate_rps: float) -> Generator[list[Cell], list[RaceRun], RaceRun]:
        probes.extend((yield [start._replace(rate_rps=rate_rps)]))
        return probes[-1]

    def ends(known: Bracket[RaceRun]) -> bool:
        if len(probes) >= _MOST_RUNS:
            return True
        if known.low is None or known.high is None:
            return known.high is not None and known.high.rate_rps < _LOWEST * guess_rps
        ratio = known.high.rate_rps / known.low.rate_rps
        return ratio <= near or known.high.rate_rps <= uninteresting_rps

    if math.isfinite(slope):
        slope = min(max(slope, _SLOPES[0]), _SLOPES[1])
        for _ in range(_FEW):
            seen = yield from look(guess_rps)
            shift = (seen.log_odds - target) / slope
            rate_rps = seen.rate_rps * math.exp(shift)
            if abs(shift) <= trusted or rate_rps <= uninteresting_rps:
                return _one_sided(start, seen, rate_rps, slope, probes)
            guess_rps *= math.exp(min(max(shift, -_MOST_STEP), _MOST_STEP))
    found = yield from locate(guess_rps, target, look, ends, replace(WALK, step=step))
    low_rps = found.low.rate_rps if found.low else 0.0
    goodput_rps = found.crossing_rps(target) if found.is_closed else low_rps
    if found.low is None and found.high is not None and found.high.rate_rps <= uninteresting_rps:
        # Not looked at more closely, which is not to say that it meets the targets nowhere.
        shift = (found.high.log_odds - target) / _SLOPES[0]
        goodput_rps = found.high.rate_rps * math.exp(shift)
    return Crossing(
        name=start.strategy,
        goodput_rps=goodput_rps,
        low_rps=low_rps,
        high_rps=found.high.rate_rps if found.high else math.inf,
        probes=tuple(probes),
        num_requests=num_requests * len(probes),
        known_slope=slope,
    )


def _one_sided(
    start: Cell, seen: RaceRun, goodput_rps: float, slope: float, probes: Sequence[RaceRun]
) -> Crossing:
    """Return a crossing from one run and a known slope.

    Its other end lies as far away as that run. From far above the goodput it comes out too high,
    for log odds fall less and less.
    """
    ends_rps = sorted((seen.rate_rps, goodput_rps**2 / seen.rate_rps))
    return Crossing(
        name=start.strategy,
        goodput_rps=goodput_rps,
        low_rps=ends_rps[0],
        high_rps=ends_rps[1],
        probes=tuple(probes),
        num_requests=(start.num_requests or 0) * len(probes),
        known_slope=slope,
    )


def cross(
    scenario: Scenario, *, guess_rps: float, seed: int, num_requests: int, **how: float
) -> Crossing:
    """Find where the attainment of the first strategy of `scenario` crosses the target.

    All runs are done here, one after the other.

    Parameters
    ----------
    scenario : Scenario
        The candidate and its target.
    guess_rps : float
        Where to start (requests/s), > 0.
    seed : int
        Decides the requests, their lengths and, scaled by the rate, their arrivals.
    num_requests : int
        Requests of a run.
    **how : float
        As in `search`.
    """
    name, target = scenario.strategies[0].name, scenario.environment.slo.attainment
    one = search(Cell(name, guess_rps, seed, num_requests), target, **how)
    return answer({name: one}, lambda wanted: [probe(scenario, cell) for _, cell in wanted])[name]


def log_odds(share: float, num_requests: int) -> float:
    """Log odds of `share`, kept finite as by half a request more that met and that missed."""
    met, missed = share * num_requests + 0.5, (1 - share) * num_requests + 0.5
    return math.log(met / missed)
