"""Goodputs of a system in a case, with 95 % intervals; every run is kept, so a search goes on.

Runs have one length (``cases.RUN_S``), so that goodputs of all rows mean the same. The rates are
powers of ``GRID``. Single runs on one seed find between which two the attainment falls below the
level; replications there, on seeds of their own, give the estimate and its interval
(`simcluster.studies.goodput.estimate.cross`). Systems meet the same requests at the same rate.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from cases import Case
from readings import READINGS, met_by_reading

from simcluster.runs import cell
from simcluster.runs.simulate import simulate
from simcluster.studies.goodput import Outcome
from simcluster.studies.goodput.estimate import Estimate, estimate_crossing
from simcluster.studies.goodput.probe import Probe
from simcluster.studies.goodput.runs import WARMUP, guess, outcome, replication_seed

GRID = 1.06
"""Ratio of neighbouring rates."""

LEAST_RPS = 0.2
"""Goodputs below this (requests/s) are given as none."""

LEAST_REQUESTS = 20
"""That a run is long enough for, on average."""

ABOVE = 1.2
"""Where the first search starts, in guesses from the roofline: attainment may be missed again at
low rates, and goodput is the highest rate that reaches it."""

FARTHEST = 40
"""Steps of the grid above the start (a factor of 10) at which a search gives up."""

SURE = 0.12
"""Half width (of the logarithm) up to which an estimate is taken, and followed beyond its rates."""

STRAIGHT = 5.0
"""Fall of the log odds between two rates beyond which they are too far apart for a line."""

STAGES = 4
"""Pairs of rates that are tried at most: 1, 3, 7 and 15 steps apart where intervals are wide."""

SCOUT = -1
"""Number of the replication of a short run: a rate that misses there by far is not run at length,
for short runs flatter."""
SCOUT_SHARE = 1 / 6
"""Its length, in runs."""

METRICS = ("ecoserve", "user")
"""Whose latencies count; each a metric of `simcluster`. Besides there are `READINGS`."""


@dataclass(frozen=True, kw_only=True)
class Goodput:
    """Requests/s, with the 95 % interval; all 0 where no rate reaches the level."""

    value: float
    low: float
    high: float

    @property
    def half_width(self) -> float:
        """Half the width of the interval (requests/s)."""
        return (self.high - self.low) / 2


NONE = Goodput(value=0.0, low=0.0, high=0.0)


class Runs:
    """Runs of one case and system, each written to their file as soon as it has ended.

    Parameters
    ----------
    case : Case
        What is served.
    table : mapping
        The system's table.
    folder : Path
        Where the runs are kept.
    tokens : bool
        Whether `READINGS`, which need the times of all tokens, are wanted too.
    """

    def __init__(
        self, case: Case, table: Mapping[str, Any], folder: Path, *, tokens: bool = False
    ) -> None:
        self._scenario = case.scenario([table])
        self._metrics = (*METRICS, *READINGS) if tokens else METRICS
        document = json.dumps([self._scenario.document, self._metrics], sort_keys=True)
        digest = sha256(f"{cell.program()} {document}".encode()).hexdigest()
        self._path = folder / f"{digest[:20]}.jsonl"
        self._known: dict[tuple[int, int], dict[str, Outcome]] = {}
        if self._path.exists():
            for line in self._path.read_text(encoding="utf-8").splitlines():
                self._learn(line)
        self.num_new = 0

    def _learn(self, line: str) -> None:
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            return  # the last line of a run that was stopped while it wrote
        known = {metric: _outcome(row[metric]) for metric in self._metrics}
        self._known[row["step"], row["replication"]] = known

    def at(self, step: int, replication: int) -> dict[str, Outcome]:
        """Return what a run at the rate ``GRID ** step`` gave, by metric."""
        key = (step, replication)
        if key not in self._known:
            self._known[key] = found = self._run(GRID**step, replication)
            self.num_new += 1
            row = {
                "step": step,
                "replication": replication,
                **{metric: dataclasses.asdict(found[metric]) for metric in self._metrics},
            }
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
        return self._known[key]

    def _run(self, rate_rps: float, replication: int) -> dict[str, Outcome]:
        duration_s = self._scenario.workload.duration_s * (
            SCOUT_SHARE if replication == SCOUT else 1.0
        )
        # At low rates long enough that somebody comes.
        duration_s = max(duration_s, LEAST_REQUESTS / rate_rps)
        workload = dataclasses.replace(self._scenario.workload, duration_s=duration_s)
        scenario = dataclasses.replace(self._scenario, workload=workload)
        seed = replication_seed(0, max(replication, 0))
        frames = simulate(scenario, rate_rps=rate_rps, seed=seed).columns
        arrival_s = frames["requests"]["arrival_s"]
        found = {
            metric: outcome(frames["requests"], _with_metric(scenario, metric), rate_rps)
            for metric in METRICS
        }
        if self._metrics != METRICS:
            counts = arrival_s >= WARMUP * arrival_s[-1]
            for name, met in met_by_reading(frames, scenario.environment).items():
                met_counted = int((met & counts).sum())
                found[name] = dataclasses.replace(found["ecoserve"], met=(met_counted,))
        return found

    def share(self, metric: str, step: int, replication: int = 0) -> float:
        """Return the attainment of one run."""
        found = self.at(step, replication)[metric]
        return found.met[0] / max(found.counted[0], 1)

    def guess_rps(self) -> float:
        """Return a rate near the most that the system can carry (requests/s)."""
        return guess(self._scenario, self._scenario.strategies[0])[0]

    def bracket(self, metric: str, level: float, start_rps: float) -> int | None:
        """Return the highest step that reaches the level, found from `start_rps`.

        A rate above is taken to be worse. None: no rate from `LEAST_RPS` on reaches it.
        """

        def reaches(k: int) -> bool:
            return self.share(metric, k) >= level

        def is_hopeless(k: int) -> bool:
            return self.share(metric, k, SCOUT) < level / 2

        low = high = first = round(math.log(max(start_rps, LEAST_RPS)) / math.log(GRID))
        step = 1
        if not is_hopeless(low) and reaches(low):
            while reaches(high := low + step):
                low, step = high, 2 * step
                if low > first + FARTHEST:
                    return low
        else:
            while is_hopeless(low := high - step) or not reaches(low):
                high, step = low, 2 * step
                if GRID**low < LEAST_RPS:
                    return None
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if reaches(middle) else (low, middle)
        return low

    def goodput(self, metric: str, level: float, start_rps: float, replications: int) -> Goodput:
        """Return the highest rate whose attainment reaches `level`.

        The two rates are moved where the estimate lies beyond them, and moved apart where the
        interval is wide.
        """
        low = self.bracket(metric, level, start_rps)
        if low is None:
            return NONE
        high = low + 1
        best: tuple[Estimate | None, int, int] = (None, low, high)
        for _ in range(STAGES):
            below = self._probe(metric, low, replications)
            above = self._probe(metric, high, replications)
            if best[0] is not None and below.log_odds - above.log_odds > STRAIGHT:
                break
            estimate = estimate_crossing(below.counts, above.counts, level)
            if estimate is not None:
                off = round(estimate.log_rate / math.log(GRID) - (low + high) / 2)
                between = abs(off) <= high - low
                if between and (best[0] is None or estimate.half_width < best[0].half_width):
                    best = estimate, low, high
                if estimate.half_width <= SURE:
                    if between:
                        break
                    low, high = low + off, high + off
                    continue
            apart = (high - low + 1) // 2
            low, high = low - apart, high + apart
        return _goodput(*best)

    def _probe(self, metric: str, step: int, replications: int) -> Probe:
        """Return replications at a rate; those at the next rate are others."""
        first = 1 + replications * (step % 2)
        numbers = tuple(range(first, first + replications))
        found = tuple(self.at(step, k)[metric] for k in numbers)
        return Probe(GRID**step, found[0].counted[0], found, numbers)

    def mean(self, metric: str, statistic: str, rate_rps: float, replications: int) -> float:
        """Return the mean of a statistic over the replications next below `rate_rps`."""
        step = math.floor(math.log(max(rate_rps, LEAST_RPS)) / math.log(GRID))
        return self._probe(metric, step, replications).mean(statistic)


def _outcome(row: Mapping[str, Any]) -> Outcome:
    tuples = {name: tuple(row[name]) for name in ("counted", "met", "controls")}
    return Outcome(**{**row, **tuples})


def _with_metric(scenario: Any, metric: str) -> Any:
    environment = scenario.environment
    slo = dataclasses.replace(environment.slo, metric=metric)
    return dataclasses.replace(scenario, environment=dataclasses.replace(environment, slo=slo))


def _goodput(estimate: Estimate | None, low: int, high: int) -> Goodput:
    """Return the estimate; one that is lost lies between the steps, and they are its interval."""
    lowest, highest = GRID ** (2 * low - high), GRID ** (2 * high - low)
    if estimate is not None and lowest <= math.exp(estimate.log_rate) <= highest:
        value, half = math.exp(estimate.log_rate), estimate.half_width
        if half <= math.log(highest / lowest):
            return Goodput(value=value, low=value * math.exp(-half), high=value * math.exp(half))
    return Goodput(value=math.sqrt(lowest * highest), low=lowest, high=highest)


@dataclass(frozen=True, kw_only=True)
class Found:
    """Goodputs of a system.

    Attributes
    ----------
    name : str
        The option taken, such as ``"Sarathi 512"``.
    goodputs : dict
        By metric and level.
    user_ttft_s : float
        Median TTFT of users at the first of them (s).
    """

    name: str
    goodputs: dict[tuple[str, float], Goodput]
    user_ttft_s: float


def find(
    case: Case,
    tables: Sequence[Mapping[str, Any]],
    folder: Path,
    wanted: Sequence[tuple[str, float]],
    replications: int,
) -> Found:
    """Find the goodputs of a system.

    Parameters
    ----------
    case : Case
        What is served.
    tables : sequence of mapping
        The system's options (chunk sizes, ratios): the one that is best at the first level, on
        one seed, is taken.
    folder : Path
        Where runs are kept.
    wanted : sequence of (str, float)
        Metric and level of each goodput.
    replications : int
        Runs at each of the two rates of an estimate, >= 3.
    """
    tokens = any(metric in READINGS for metric, _ in wanted)
    options = [(table, Runs(case, table, folder, tokens=tokens)) for table in tables]
    best, start_rps = _best(options, *wanted[0])
    table, runs = best
    goodputs: dict[tuple[str, float], Goodput] = {}
    for key in wanted:
        goodputs[key] = runs.goodput(*key, start_rps, replications)
        if key == wanted[0] and goodputs[key].value:
            start_rps = goodputs[key].value
    at = goodputs[wanted[0]].value
    ttft_s = runs.mean("user", "ttft_s_p50", at, replications) if at else math.nan
    return Found(name=str(table["name"]), goodputs=goodputs, user_ttft_s=ttft_s)


def _best(
    options: Sequence[tuple[Mapping[str, Any], Runs]], metric: str, level: float
) -> tuple[tuple[Mapping[str, Any], Runs], float]:
    """Return the best option and where to look for its goodput (requests/s)."""
    best = options[0]
    start_rps = ABOVE * best[1].guess_rps()
    if len(options) == 1:
        return best, start_rps
    low = best[1].bracket(metric, level, start_rps)
    for option in options[1:]:
        runs = option[1]
        if low is None:
            found = runs.bracket(metric, level, ABOVE * runs.guess_rps())
        elif runs.share(metric, low) > best[1].share(metric, low):
            found = runs.bracket(metric, level, GRID**low)
        else:
            continue
        if found is not None and (low is None or found >= low):
            best, low = option, found
    return best, LEAST_RPS if low is None else GRID**low
