"""Rank every strategy for given GPUs: screen by roofline, race on few requests, settle the best.

The question is BestServe's (arXiv 2506.05871); the answers are simulated token by token, on the
same requests for all candidates, and come with intervals.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import numpy as np
from pydantic import TypeAdapter

from simcluster.errors import DataError
from simcluster.executor import outcomes
from simcluster.goodput_search import Interval, student
from simcluster.planner import bestserve
from simcluster.planner.finals import Finals, settle
from simcluster.planner.race import Crossing, Probe, cross, only, probe, refuse_unrankable
from simcluster.planner.screen import Bound, Lengths, Screen
from simcluster.planner.settings import RankTable
from simcluster.planner.space import space
from simcluster.scenario import Scenario
from simcluster.scenario_file import resolve
from simcluster.strategies import FuDG, NoDG, PaDG, Strategy
from simcluster.validation import validated

Bottleneck = Literal["prefill", "decode", "link", "memory", "dispatch", "targets"]
Stage = Literal["bound", "screen", "race", "final"]
Progress = Callable[[int, int, float], None]
"""Called with the number of candidates done in a round, of all, and the share of the work."""

FIRST, SECOND = 4.0, 10.0
"""Length of a run in the first two rounds, in TTFT targets or half stays, the longer of both."""
REPLICATIONS: Final = 3
"""Draws of requests in the second round."""
_LEAST_REQUESTS: Final = 200
_SCOUTS: Final = 3  # of each family, that show how far below its bound a family ends
_BEHIND: Final = 0.75  # of the best: goodputs below it do not come back in longer runs
_FAR_BEHIND: Final = 0.5  # of what the best carries per GPU: a bound below it needs no run
_MOST_RACING: Final = 8
_BIAS: Final = 0.03  # by which runs of this length may flatter one candidate more than another
_FULL_KV: Final = 0.95  # peak share of KV blocks that says memory held requests back
_LATENCY_RATE: Final = 0.5  # of the best goodput: where latencies are compared


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A ranked candidate.

    Attributes
    ----------
    name : str
        As BestServe writes it (`space`), or that of a strategy of the file.
    strategy : str
        Family: ``"NoDG"``, ``"NoDG chunked"``, ``"PaDG"``, ``"FuDG intra-node"``, ...
    num_gpus : int
        GPUs it takes.
    goodput_rps, low_rps, high_rps : float
        Goodput and its 95 % interval (requests/s).
    stage : str
        How far it came: ``"bound"`` (the roofline alone says that it cannot win; its goodput is
        what others of its family make of theirs), ``"screen"`` (one draw of few requests),
        ``"race"`` (several draws) or ``"final"`` (settled to the tolerance).
    cost_per_hour : float or None
        Price of its GPUs; None where no price is known.
    bottleneck : str
        What keeps it from carrying more.
    why : str
        The same in words, with figures.
    ttft_s, tpot_s : float
        Latencies that the wanted share of requests gets at the ranking's `latency_rate_rps` (s);
        NaN if it does not carry that rate.
    bound_rps : float
        What its parts carry at most by the roofline (requests/s).
    """

    name: str
    strategy: str
    num_gpus: int
    goodput_rps: float
    low_rps: float
    high_rps: float
    stage: Stage
    cost_per_hour: float | None
    bottleneck: Bottleneck
    why: str
    ttft_s: float
    tpot_s: float
    bound_rps: float

    @property
    def per_gpu_rps(self) -> float:
        """Goodput per GPU (requests/s)."""
        return self.goodput_rps / self.num_gpus

    @property
    def per_cost(self) -> float:
        """Requests per unit of currency; NaN where no price is known."""
        if self.cost_per_hour is None:
            return math.nan
        return self.goodput_rps * 3600.0 / self.cost_per_hour


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranking:
    """All candidates, the best first.

    Attributes
    ----------
    scenario : Scenario
        What was ranked; its strategies are the candidates.
    table : RankTable
        The space.
    candidates : tuple of Candidate
        By goodput, falling.
    removed : Counter of str
        Number of candidates that rules removed before any run.
    undecided : tuple of str
        Pairs of finalists that the runs do not tell apart, in words.
    decided : tuple of str
        Pairs that they do.
    latency_rate_rps : float
        Offered rate at which latencies are compared (requests/s).
    num_requests : int
        Requests simulated in all.
    """

    scenario: Scenario
    table: RankTable
    candidates: tuple[Candidate, ...]
    removed: Counter[str]
    undecided: tuple[str, ...]
    decided: tuple[str, ...]
    latency_rate_rps: float
    num_requests: int

    def cost_front(self) -> tuple[Candidate, ...]:
        """Candidates that no other beats in goodput at no more cost, the cheapest first.

        Cost is that of the GPUs per hour, and so their number.
        """
        return _front(self.candidates, lambda c: (c.num_gpus, -c.goodput_rps))

    def latency_front(self) -> tuple[Candidate, ...]:
        """Candidates that no other beats in both TTFT and TPOT, the lowest TTFT first."""
        known = [c for c in self.candidates if not math.isnan(c.ttft_s + c.tpot_s)]
        return _front(known, lambda c: (c.ttft_s, c.tpot_s))


def _front(
    candidates: Iterable[Candidate], key: Callable[[Candidate], tuple[float, float]]
) -> tuple[Candidate, ...]:
    """Return those that lie on the front where both parts of `key` are as low as they can be."""
    front: list[Candidate] = []
    for candidate in sorted(candidates, key=key):
        if not front or key(candidate)[1] < key(front[-1])[1]:
            front.append(candidate)
    return tuple(front)


def load(
    path: str | Path, overrides: Mapping[str, object] | None = None
) -> tuple[Scenario, RankTable]:
    """Read a scenario file for ranking: its strategies are optional, ``[rank]`` says the space.

    Parameters
    ----------
    path : str or Path
        A TOML file.
    overrides : mapping, optional
        As in `scenario_file.load`.

    Returns
    -------
    scenario : Scenario
        Without strategies if the file has none.
    table : RankTable
        The space.

    Raises
    ------
    ConfigError
        If a key is unknown, missing or has a value that cannot be used.
    DataError
        If the file cannot be read or is not TOML.
    """
    from simcluster.scenario_file import parsed

    path = Path(path)
    document = parsed(path)
    given = "strategy" in document
    if not given:
        document["strategy"] = [{"name": "none", "kind": "nodg"}]
    scenario = resolve(document, overrides, folder=path.parent)
    if not given:
        scenario = dataclasses.replace(scenario, strategies=())
    table = validated(TypeAdapter(RankTable), dict(scenario.document.get("rank", {})))
    return scenario, table


def rank(
    scenario: Scenario,
    table: RankTable | None = None,
    *,
    jobs: int | None = None,
    dask: str | None = None,
    progress: Progress | None = None,
) -> Ranking:
    """Rank all candidates of `table` and the strategies of `scenario`.

    Parameters
    ----------
    scenario : Scenario
        Model, machines, engine, workload, targets. Its rates and run length are not used.
    table : RankTable, optional
        The space; default: all families with the defaults of the table.
    jobs : int, optional
        Processes; default: one per core.
    dask : str, optional
        Address of a Dask scheduler, for the rounds of the race.
    progress : callable, optional
        Called after each candidate of a round.

    Returns
    -------
    Ranking
        The best first.

    Raises
    ------
    ConfigError
        If there are no targets, or the arrivals cannot be drawn at any rate.
    DataError
        If no candidate is left, or none meets the targets at any rate.
    """
    table = table or RankTable()
    refuse_unrankable(scenario)
    environment = scenario.environment
    found = space(table, environment)
    strategies = {**found.strategies, **{s.name: s for s in scenario.strategies}}
    if not strategies:
        found.refuse_empty()
    screen = Screen(environment, Lengths.of(scenario))
    bounds = {name: screen.bound(strategy) for name, strategy in strategies.items()}
    hopeless = [n for n, b in bounds.items() if b.alone_share < environment.slo.attainment]
    if len(hopeless) == len(bounds):
        best_ttft = min(b.alone_ttft_s for b in bounds.values())
        best_tpot = min(b.alone_tpot_s for b in bounds.values())
        raise DataError(
            f"none of the {len(bounds)} candidates meets the targets for "
            f"{100 * environment.slo.attainment:g} % of the requests even when they are alone: the "
            f"best TTFT is {best_ttft:.3g} s, the best TPOT {1e3 * best_tpot:.3g} ms. Loosen "
            "slo.ttft_s or slo.tpot_s, or take faster GPUs."
        )
    for name in hopeless:
        found.removed["targets are missed even by requests that are alone"] += 1
        del strategies[name], bounds[name]
    scenario = dataclasses.replace(scenario, strategies=tuple(strategies.values()))
    if table.mode == "bestserve":
        return _estimated(scenario, table, bounds, found.removed, jobs, dask, progress)
    race = _Race(scenario, bounds, jobs, dask, progress)
    race.first_round()
    field = race.second_round()
    final = race.final_round(field[: table.finalists], table.tolerance)
    ranked = race.standings(final)
    rate = _LATENCY_RATE * ranked[0].goodput_rps
    latencies = race.latencies([c.name for c in ranked if c.goodput_rps >= rate], rate)
    candidates = tuple(
        dataclasses.replace(c, ttft_s=latencies[c.name].ttft_s, tpot_s=latencies[c.name].tpot_s)
        if c.name in latencies
        else c
        for c in ranked
    )
    return Ranking(
        scenario=scenario,
        table=table,
        candidates=candidates,
        removed=found.removed,
        undecided=final.undecided,
        decided=final.decided,
        latency_rate_rps=rate,
        num_requests=race.num_requests,
    )


def _estimated(
    scenario: Scenario,
    table: RankTable,
    bounds: Mapping[str, Bound],
    removed: Counter[str],
    jobs: int | None,
    dask: str | None,
    progress: Progress | None,
) -> Ranking:
    """Rank by BestServe's estimator: the candidates that it knows, without intervals."""
    slo = dataclasses.replace(scenario.environment.slo, criterion="marginal")
    environment = dataclasses.replace(scenario.environment, slo=slo)
    scenario = dataclasses.replace(scenario, environment=environment)
    known = [s for s in scenario.strategies if bestserve.knows(s)]
    if len(known) < len(scenario.strategies):
        removed["BestServe's estimator does not know such a strategy"] += len(
            scenario.strategies
        ) - len(known)
    if not known:
        raise DataError(
            "BestServe's estimator knows none of the candidates: collocated instances that prefill "
            'first and disaggregated pools, without pipelines. Use rank.mode = "simulate".'
        )
    calls = [(only(scenario, strategy.name),) for strategy in known]
    values: dict[str, float] = {}
    for name, value in outcomes(_estimate, calls, jobs=jobs, dask=dask):
        values[name] = value
        if progress:
            progress(len(values), len(calls), len(values) / len(calls))
    price = environment.cluster.price_per_gpu_hour
    candidates = []
    for name, value in sorted(values.items(), key=lambda item: -item[1]):
        bottleneck, why = _explain_bound(bounds[name])
        candidates.append(
            Candidate(
                name=name,
                strategy=family(scenario.strategy(name)),
                num_gpus=bounds[name].num_gpus,
                goodput_rps=value,
                low_rps=math.nan,
                high_rps=math.nan,
                stage="bound",
                cost_per_hour=None if price is None else price * bounds[name].num_gpus,
                bottleneck=bottleneck,
                why=why,
                ttft_s=math.nan,
                tpot_s=math.nan,
                bound_rps=bounds[name].total_rps,
            )
        )
    return Ranking(
        scenario=scenario,
        table=table,
        candidates=tuple(candidates),
        removed=removed,
        undecided=(),
        decided=(),
        latency_rate_rps=math.nan,
        num_requests=0,
    )


def _estimate(scenario: Scenario) -> tuple[str, float]:
    strategy = scenario.strategies[0]
    return strategy.name, bestserve.goodput_rps(scenario, strategy)


class _Race:
    """The rounds of one ranking, and what they have shown."""

    def __init__(
        self,
        scenario: Scenario,
        bounds: Mapping[str, Bound],
        jobs: int | None,
        dask: str | None,
        progress: Progress | None,
    ) -> None:
        self._scenario, self._bounds = scenario, bounds
        self._jobs, self._dask, self._progress = jobs, dask, progress
        self._strategies = {s.name: s for s in scenario.strategies}
        self._light = {s.name: only(scenario, s.name) for s in scenario.strategies}
        self._first: dict[str, Crossing] = {}
        self._guessed: dict[str, float] = {}
        self._second: dict[str, list[Crossing]] = {}
        self.num_requests = 0

    # --- rounds -------------------------------------------------------------------------------

    def first_round(self) -> None:
        """Find every candidate's goodput on one draw of few requests."""
        order = sorted(self._bounds, key=lambda name: -self._bounds[name].total_rps)
        scouts = [
            name
            for own in self._families(order).values()
            for name in [*own[: _SCOUTS - 1], own[len(own) // 2]]
        ]
        scouts = list(dict.fromkeys(scouts))
        share = 0.6  # of the bound; where scouts start
        calls = [(name, share * self._bounds[name].total_rps, 0.0) for name in scouts]
        self._find(calls, 0, len(order))
        rest = [name for name in order if name not in self._first]
        per_gpu = max(c.goodput_rps / self._bounds[n].num_gpus for n, c in self._first.items())
        calls = []
        for name in rest:
            known = [
                c.goodput_rps / self._bounds[n].total_rps
                for n, c in self._first.items()
                if family(self._strategies[n]) == family(self._strategies[name]) and c.goodput_rps
            ]
            guess = min(float(np.median(known)), 1.0) if known else share
            bound = self._bounds[name]
            best = per_gpu * bound.num_gpus
            dull = _BEHIND * best
            if bound.total_rps < _FAR_BEHIND * best:
                self._guessed[name] = guess * bound.total_rps
            else:
                calls.append((name, guess * bound.total_rps, dull))
        calls.sort(key=lambda call: call[1])  # slow candidates take longest
        self._find(calls, len(self._first) + len(self._guessed), len(order))
        if all(not c.goodput_rps for c in self._first.values()):
            raise DataError(
                f"none of the {len(order)} candidates meets the targets at any rate that was tried "
                "although single requests do. Loosen slo.ttft_s, slo.tpot_s or slo.e2el_s."
            )

    def _families(self, names: Sequence[str]) -> dict[str, list[str]]:
        own: dict[str, list[str]] = {}
        for name in names:
            own.setdefault(family(self._strategies[name]), []).append(name)
        return own

    def _find(self, calls: Sequence[tuple[str, float, float]], done: int, total: int) -> None:
        jobs = [
            (self._light[name], guess, self._seed(0), self._length(name, guess, FIRST), dull)
            for name, guess, dull in calls
        ]
        for crossing in outcomes(_cross, jobs, jobs=self._jobs, dask=self._dask):
            self._first[crossing.name] = crossing
            self.num_requests += crossing.num_requests
            done += 1
            self._tell(done, total, 0.4 * done / total)

    def second_round(self) -> list[str]:
        """Look longer at those close to the best; return them, the best first."""
        field = self._close()
        draws = range(REPLICATIONS)
        guesses = {name: self._first[name].goodput_rps for name in field}
        # The same requests for all: their ratios are the candidates' then.
        length = max(self._length(name, guesses[name], SECOND) for name in field)
        jobs = [
            (self._light[name], guesses[name], self._seed(1 + draw), length)
            for draw in draws
            for name in field
        ]
        found: dict[tuple[str, int], Crossing] = {}
        for seed, crossing in outcomes(_cross_again, jobs, jobs=self._jobs, dask=self._dask):
            found[crossing.name, seed] = crossing
            self.num_requests += crossing.num_requests
            self._tell(len(found), len(jobs), 0.4 + 0.2 * len(found) / len(jobs))
        for name in field:
            self._second[name] = [found[name, self._seed(1 + draw)] for draw in draws]
        order = sorted(field, key=lambda name: -self._mean_log(name))
        least = self._mean_log(order[0]) - self._half_width() - _BIAS
        # The second comes along, to say by how much it is behind.
        return order[: max(2, sum(self._mean_log(name) >= least for name in order))]

    def _close(self) -> list[str]:
        """Candidates near the best of all, and the best two of each smaller number of GPUs."""
        values = {name: c.goodput_rps for name, c in self._first.items() if c.goodput_rps > 0}
        order = sorted(values, key=lambda name: -values[name])
        close = [n for n in order if values[n] >= _BEHIND * values[order[0]]][:_MOST_RACING]
        for num_gpus in {self._bounds[n].num_gpus for n in order}:
            close += [n for n in order if self._bounds[n].num_gpus == num_gpus][:2]
        return list(dict.fromkeys(close))

    def final_round(self, names: Sequence[str], tolerance: float) -> Finals:
        """Settle the goodputs of `names` to the tolerance."""
        final = settle(
            self._scenario,
            names,
            tolerance=tolerance,
            seed=self._seed(1 + REPLICATIONS),
            jobs=self._jobs,
            dask=self._dask,
        )
        self.num_requests += final.num_requests
        if final.intervals:
            return final
        return dataclasses.replace(final, intervals={names[0]: self._own_interval(names[0])})

    def _own_interval(self, name: str) -> Interval:
        """Return the goodput of a candidate by the second round alone."""
        logs = [math.log(max(c.goodput_rps, 1e-9)) for c in self._second[name]]
        error = float(np.std(logs, ddof=1)) / math.sqrt(len(logs))
        half = student.quantile(0.975, len(logs) - 1) * error
        low, value, high = (math.exp(self._mean_log(name) + x) for x in (-half, 0.0, half))
        return Interval(value=value, low=low, high=high)

    def latencies(self, names: Sequence[str], rate_rps: float) -> dict[str, Probe]:
        """Return the run of each candidate at a rate that all of them carry."""
        jobs = [
            (self._light[name], rate_rps, self._seed(0), self._length(name, rate_rps, FIRST))
            for name in names
        ]
        self.num_requests += sum(job[-1] for job in jobs)
        return dict(outcomes(_probe, jobs, jobs=self._jobs, dask=self._dask))

    def _length(self, name: str, rate_rps: float, times: float) -> int:
        """Return the requests of a run at about `rate_rps`: queues must have time to build up."""
        slo, bound = self._scenario.environment.slo, self._bounds[name]
        target_s = max(slo.ttft_s or 0.0, slo.e2el_s or 0.0)
        long_s = times * max(target_s, bound.stay_s / 2)
        rate_rps = min(rate_rps, bound.total_rps)
        return max(_LEAST_REQUESTS, math.ceil(long_s * rate_rps))

    def _seed(self, draw: int) -> int:
        return 1000 * self._scenario.run.seeds[0] + draw

    def _tell(self, done: int, total: int, share: float) -> None:
        if self._progress:
            self._progress(done, total, share)

    # --- what the rounds say ------------------------------------------------------------------

    def _mean_log(self, name: str) -> float:
        return float(np.mean([math.log(max(c.goodput_rps, 1e-9)) for c in self._second[name]]))

    def _spread(self) -> tuple[float, int]:
        """Standard deviation between draws of a log goodput less that of the others, and its df."""
        logs = np.array(
            [[math.log(max(c.goodput_rps, 1e-9)) for c in own] for own in self._second.values()]
        )
        if len(logs) < 2:
            own = logs - logs.mean(axis=1, keepdims=True)
            return float(np.sqrt((own**2).sum() / (logs.shape[1] - 1))), logs.shape[1] - 1
        # What a draw does to all candidates alike is not between them.
        rest = logs - logs.mean(axis=1, keepdims=True) - logs.mean(axis=0) + logs.mean()
        degrees = (logs.shape[0] - 1) * (logs.shape[1] - 1)
        return float(np.sqrt((rest**2).sum() / degrees)), degrees

    def _half_width(self) -> float:
        """Half width of the 95 % interval of a ratio of two means of the second round, in logs.

        By Bonferroni for all pairs with the best.
        """
        spread, degrees = self._spread()
        level = 1 - 0.025 / max(1, len(self._second) - 1)
        return student.quantile(level, degrees) * spread * math.sqrt(2 / REPLICATIONS)

    def standings(self, final: Finals) -> list[Candidate]:
        """Return all candidates, the best first.

        Who was settled has its own interval. Everybody else has the winner's goodput times the
        ratio to it on the same requests: what short runs do to all alike falls out of that.
        """
        winner = max(final.intervals, key=lambda name: final.intervals[name].value)
        settled = final.intervals[winner]
        own_half = math.log(settled.high / settled.value)
        spread, degrees = self._spread()
        wide = student.quantile(0.975, degrees) * spread
        ranked = []
        for name, first in self._first.items():
            stage: Stage = "screen"
            if name in final.intervals:
                one = final.intervals[name]
                value, low, high, stage = one.value, one.low, one.high, "final"
            elif name in self._second:
                log = self._mean_log(name) - self._mean_log(winner)
                half = math.hypot(own_half, wide * math.sqrt(2 / REPLICATIONS)) + _BIAS
                value = settled.value * math.exp(log)
                low, high, stage = value * math.exp(-half), value * math.exp(half), "race"
            else:
                scale = settled.value / self._first[winner].goodput_rps
                noise = wide * math.sqrt(2 * SECOND / FIRST)
                half = math.hypot(own_half, noise) + _BIAS
                value = scale * first.goodput_rps
                low = scale * first.low_rps * math.exp(-half)
                high = scale * first.high_rps * math.exp(half)
            ranked.append(self._candidate(name, stage, value, low, high))
        for name, value in self._guessed.items():
            ranked.append(self._candidate(name, "bound", value, 0.0, self._bounds[name].total_rps))
        return sorted(ranked, key=lambda candidate: -candidate.goodput_rps)

    def _candidate(
        self, name: str, stage: Stage, value: float, low: float, high: float
    ) -> Candidate:
        bound = self._bounds[name]
        price = self._scenario.environment.cluster.price_per_gpu_hour
        crossing = self._second[name][0] if name in self._second else self._first.get(name)
        bottleneck, why = explain(self._strategies[name], bound, crossing)
        return Candidate(
            name=name,
            strategy=family(self._strategies[name]),
            num_gpus=bound.num_gpus,
            goodput_rps=value,
            low_rps=low,
            high_rps=high,
            stage=stage,
            cost_per_hour=None if price is None else price * bound.num_gpus,
            bottleneck=bottleneck,
            why=why,
            ttft_s=math.nan,
            tpot_s=math.nan,
            bound_rps=bound.total_rps,
        )


def _cross(
    scenario: Scenario, guess_rps: float, seed: int, num_requests: int, dull_rps: float
) -> Crossing:
    return cross(
        scenario,
        guess_rps=guess_rps,
        seed=seed,
        num_requests=num_requests,
        uninteresting_rps=dull_rps,
    )


def _cross_again(
    scenario: Scenario, guess_rps: float, seed: int, num_requests: int
) -> tuple[int, Crossing]:
    return seed, cross(
        scenario,
        guess_rps=guess_rps,
        seed=seed,
        num_requests=num_requests,
        step=1.06,
        near=1.06,
    )


def _probe(scenario: Scenario, rate_rps: float, seed: int, num_requests: int) -> tuple[str, Probe]:
    return scenario.strategies[0].name, probe(scenario, rate_rps, seed, num_requests)


def family(strategy: Strategy) -> str:
    """Return what kind of strategy a candidate is, in words."""
    match strategy:
        case NoDG(scheduler="chunked"):
            return "NoDG chunked"
        case NoDG():
            return "NoDG"
        case PaDG():
            return "PaDG"
        case FuDG():
            return f"FuDG {strategy.placement}"
    return strategy.kind


def explain(strategy: Strategy, bound: Bound, crossing: Crossing | None) -> tuple[Bottleneck, str]:
    """Return what keeps a candidate from carrying more, and the figures that say so.

    Parameters
    ----------
    strategy : Strategy
        The candidate.
    bound : Bound
        What its parts carry at most.
    crossing : Crossing or None
        Where its attainment falls below the target; None where it was not run.

    Notes
    -----
    Judged by the run just beyond the goodput. Full KV blocks: memory. A link that carries less
    than GPUs do: link. Else the target that more requests miss: the TTFT waits for prefills; the
    TPOT for decode steps, or for the CPU where it takes over half of a step. What was not run is
    judged by its bound alone.
    """
    if crossing is None:
        return _explain_bound(bound)
    beyond = crossing.beyond
    if crossing.goodput_rps <= 0:
        return "targets", "misses the targets at any rate that was tried"
    if beyond is None:
        return "targets", "carries any rate that was tried"
    if beyond.peak_kv_usage >= _FULL_KV and bound.memory_batch <= 2 * bound.batch:
        return "memory", (
            f"KV blocks are full ({beyond.peak_kv_usage:.0%}, {beyond.num_preemptions} "
            f"preemptions): they hold {bound.memory_batch} sequences per instance"
        )
    if bound.link_rps <= min(bound.prefill_rps, bound.decode_rps):
        return "link", f"links carry the KV cache of {bound.link_rps:.3g} requests/s"
    if beyond.ttft_attainment <= beyond.tpot_attainment:
        return "prefill", (
            f"TTFT: {1 - beyond.ttft_attainment:.0%} late at {beyond.rate_rps:.3g} requests/s; "
            f"prefills alone carry {bound.prefill_rps:.3g}"
        )
    late = f"TPOT: {1 - beyond.tpot_attainment:.0%} late at {beyond.rate_rps:.3g} requests/s"
    if bound.dispatch_share > 0.5:
        return "dispatch", f"{late}; the CPU takes {bound.dispatch_share:.0%} of a decode step"
    chunked = isinstance(strategy, NoDG) and strategy.scheduler == "chunked"
    if bound.decode_rps < 2 * crossing.goodput_rps or isinstance(strategy, FuDG):
        cause = "decode steps are too slow"
    else:
        cause = "chunks of prompts slow them" if chunked else "prefills interrupt decoding"
    return "decode", f"{late}; {cause}, decoding alone carries {bound.decode_rps:.3g}"


def _explain_bound(bound: Bound) -> tuple[Bottleneck, str]:
    """Return what the roofline alone says a candidate is short of."""
    parts: dict[Bottleneck, float] = {
        "prefill": bound.prefill_rps,
        "decode": bound.decode_rps,
        "link": bound.link_rps,
    }
    part = min(parts, key=lambda name: parts[name])
    if part == "decode":
        if bound.batch >= bound.memory_batch:
            text = f"memory holds {bound.memory_batch} sequences per instance"
            return "memory", f"{text}: decoding carries at most {bound.decode_rps:.3g} requests/s"
        if bound.dispatch_share > 0.5:
            text = f"the CPU takes {bound.dispatch_share:.0%} of a decode step"
            return "dispatch", f"{text}: decoding carries at most {bound.decode_rps:.3g} requests/s"
    return part, f"{part} carries at most {parts[part]:.3g} requests/s"
