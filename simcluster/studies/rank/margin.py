"""How far the best are from their targets below their goodputs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import numpy as np

from simcluster.config import SloConfig
from simcluster.frames.goodput import three_digits
from simcluster.frames.metrics import measured_window, request_metrics
from simcluster.runs.cell import Cell
from simcluster.runs.simulate import run, workload_of
from simcluster.scenario.scenario import Scenario
from simcluster.studies.rank.contest import Contest
from simcluster.studies.rank.race import WARMUP
from simcluster.studies.rank.ranking import Candidate, Latencies, Level
from simcluster.units import MS

SHARES: Final = (0.5, 0.75)
"""Offered rates, over the goodput."""
SHOWN: Final = 3
"""Candidates that are looked at."""
_REQUESTS: Final = 4000
_NEAR: Final = 0.05  # distance of a percentile from its target that leaves no margin
_UNITS: Final = {"ttft": (1.0, "s"), "tpot": (MS, "ms"), "e2el": (1.0, "s")}
PART: Final = "margins"


def latencies(scenario: Scenario, cell: Cell) -> Latencies:
    """Simulate a run and return percentiles of its latencies."""
    assert cell.rate_rps is not None
    slo = scenario.environment.slo
    strategy = scenario.strategy(cell.strategy)
    result = run(scenario.environment, strategy, workload_of(scenario, cell), seed=cell.seed)
    requests = result.columns["requests"]
    counted = measured_window(requests, WARMUP * float(requests["arrival_s"][-1]), 0.0)
    metrics = request_metrics(requests, slo.metric)
    found = {}
    for key in _UNITS:
        values = metrics[f"{key}_s"][counted]
        values = values[~np.isnan(values)]
        shares = (0.5, 0.95, 0.99, slo.wanted(key))
        points = np.quantile(values, shares) if values.size else [math.nan] * 4
        names = ("p50", "p95", "p99", "wanted")
        found[key] = dict(zip(names, map(float, points), strict=True))
    return Latencies(rate_rps=cell.rate_rps, percentiles=found)


def look(contest: Contest, cells: Sequence[Cell], part: str) -> list[Latencies]:
    """Return the latencies of runs, which belong to a part of the work."""
    slo = contest.scenario.environment.slo
    # What is recorded holds the percentiles that are wanted.
    kind = "latencies" + "".join(f"-{slo.wanted(key):g}" for key in _UNITS)
    return contest.runner.cells(
        latencies,
        contest.scenario,
        cells,
        made=Latencies,
        kind=kind,
        done=lambda cell: contest.did(part, cell),
    )


def levels(contest: Contest, candidates: Sequence[Candidate], draw: int) -> list[Level]:
    """Return the latencies of candidates at shares of their goodputs."""
    known = [c for c in candidates if 0 < c.goodput_rps < math.inf]
    cells = [
        Cell(c.name, share * c.goodput_rps, contest.seed(draw), _REQUESTS)
        for c in known
        for share in SHARES
    ]
    contest.work.expect(PART, _REQUESTS * len(cells))
    seen = look(contest, cells, PART)
    contest.work.end(PART)
    shares = SHARES * len(known)
    return [
        Level(name=cell.strategy, share=share, latencies=one)
        for cell, share, one in zip(cells, shares, seen, strict=True)
    ]


def warnings(found: Sequence[Level], slo: SloConfig) -> list[str]:
    """Return who has no margin at half the goodput, a line each.

    With classes nobody is warned of: a percentile over all of them has no target.
    """
    if slo.classes:
        return []
    lines = []
    for level in found:
        for key, (unit, symbol) in _UNITS.items():
            target: float | None = getattr(slo, f"{key}_s")
            if level.share != SHARES[0] or target is None:
                continue
            value = level.latencies.percentiles[key]["wanted"]
            if value >= (1 - _NEAR) * target:
                lines.append(
                    f"{level.name} has no margin: at half its goodput "
                    f"({three_digits(level.latencies.rate_rps)} requests/s) its "
                    f"P{100 * slo.wanted(key):g} {key.upper()} is {three_digits(value / unit)} of "
                    f"{target / unit:g} {symbol}"
                )
    return lines
