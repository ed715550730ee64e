"""Racing: candidates meet the same requests, in rounds that grow longer while the field shrinks.

In each round a candidate's rate is sought at which attainment crosses the target, on few requests
first. Whoever is behind by more than chance explains leaves (successive halving, Jamieson and
Talwalkar, AISTATS 2016). All use the same draws, so that what differs is the candidate.
"""

from __future__ import annotations

import math
from collections.abc import Generator
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from simcluster.frames.metrics import attainments, mean_gpus, measured_window, request_metrics
from simcluster.runs.cell import Cell
from simcluster.runs.result import Result
from simcluster.runs.simulate import run, workload_of
from simcluster.scenario.scenario import Scenario
from simcluster.studies.goodput.locate import Bracket, locate
from simcluster.studies.goodput.rules import Walk
from simcluster.studies.goodput.runs import answer
from simcluster.units import FloatArray

WARMUP: Final = 0.1
"""Share of the arrival time that is not counted."""
WALK: Final = Walk(step=1.35, far=3.0, growth=1.2, margin=0.15)
"""How a search that knows little goes from rate to rate."""
_NEAR: Final = 1.1
_MOST_RUNS: Final = 9
_LOWEST: Final = 1e-3  # of the first guess: below it the targets are missed at any rate


@dataclass(frozen=True, slots=True, kw_only=True)
class RaceRun:
    """One run of a candidate.

    Attributes
    ----------
    attainment, ttft_attainment, tpot_attainment, itl_attainment : float
        Shares of the counted requests within all targets, and within each, 0 to 1.
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

    @property
    def slope(self) -> float:
        """Fall of the log odds of attainment per unit of the logarithm of the rate, > 0.

        NaN where no run missed the target, or none reached it, or attainment did not fall.
        """
        by_rate = {p.rate_rps: p for p in self.probes}
        return Bracket(by_rate.get(self.low_rps), by_rate.get(self.high_rps)).slope

    @property
    def mean_gpus(self) -> float:
        """GPUs held in the run at the highest rate that reached the target; NaN if none did."""
        reached = [p.mean_gpus for p in self.probes if p.rate_rps == self.low_rps]
        return reached[0] if reached else math.nan

    @property
    def beyond(self) -> RaceRun | None:
        """The run at the lowest rate that missed the target."""
        missed = [p for p in self.probes if p.rate_rps == self.high_rps]
        return missed[0] if missed else None


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
    latency = request_metrics(requests, slo.metric)
    decodes = instances["pool"] != "prefill"

    def finished(name: str) -> FloatArray:
        values: FloatArray = latency[name][counted]
        return values[~np.isnan(values)]

    def level(name: str) -> float:
        values = finished(name)
        return float(np.quantile(values, slo.attainment)) if values.size else math.nan

    residences = finished("e2el_s")
    return RaceRun(
        rate_rps=rate_rps,
        num_requests=len(requests["arrival_s"]),
        attainment=met["slo"],
        ttft_attainment=met["ttft"],
        tpot_attainment=met["tpot"],
        ttft_s=level("ttft_s"),
        tpot_s=level("tpot_s"),
        residence_s=float(residences.mean()) if residences.size else math.nan,
        peak_kv_usage=float(instances["peak_kv_usage"][decodes].max()),
        num_preemptions=int(instances["num_preemptions"].sum()),
        mean_gpus=mean_gpus(instances, WARMUP * end_s, end_s),
        itl_attainment=met["itl"],
    )


Search = Generator[list[Cell], list[RaceRun], Crossing]
"""A search for the goodput of a candidate: yields the run that it wants next."""


def search(
    start: Cell,
    attainment: float,
    *,
    step: float = WALK.step,
    near: float = _NEAR,
    uninteresting_rps: float = 0.0,
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

    found = yield from locate(guess_rps, target, look, ends, replace(WALK, step=step))
    low_rps = found.low.rate_rps if found.low else 0.0
    return Crossing(
        name=start.strategy,
        goodput_rps=found.crossing_rps(target) if found.is_closed else low_rps,
        low_rps=low_rps,
        high_rps=found.high.rate_rps if found.high else math.inf,
        probes=tuple(probes),
        num_requests=num_requests * len(probes),
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
