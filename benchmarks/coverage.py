"""How often the 95 % interval of a goodput holds the true one: ``python benchmarks/coverage.py``.

One server of constant service time and Poisson arrivals (M/D/1) has a goodput that follows from
theory: the rate at which the share of waits within the target falls to the attainment wanted. The
search of `simcluster goodput` runs on such a queue, its waits from Lindley's recursion; that a
deployment with one sequence and one token gives the same waits is a test. Sequential stopping is
included: every interval is that of a whole search.
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections import Counter
from fractions import Fraction

import numpy as np

from simcluster.studies.goodput.probe import Outcome, Wanted
from simcluster.studies.goodput.rules import Settings
from simcluster.studies.goodput.runs import (
    TARGETS_PER_RUN,
    WARMUP,
    course,
    flow,
    replication_seed,
)
from simcluster.studies.goodput.search import Verdict, search
from simcluster.units import FloatArray
from simcluster.workload.renewal import PoissonArrivals


def md1_within(rate_rps: float, wait_s: float) -> float:
    """Share of waits of at most `wait_s` in M/D/1 with a service time of 1 s.

    Notes
    -----
    Erlang (1909), in the form of Crommelin (1932): ``(1 - rho) sum_{k <= t} (-rho (t - k))^k / k!
    exp(rho (t - k))``. Its terms alternate and cancel, so it is summed in fractions.
    """
    total = Fraction(0)
    for k in range(math.floor(wait_s) + 1):
        x = Fraction(rate_rps) * (Fraction(wait_s) - k)
        total += (-x) ** k / math.factorial(k) * Fraction(math.exp(x))
    return (1 - rate_rps) * float(total)


def true_goodput(wait_s: float, target: float) -> float:
    """Rate (requests/s) at which `target` of the waits are at most `wait_s`, by bisection."""
    low, high = 1e-6, 1 - 1e-9
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if md1_within(middle, wait_s) >= target else (low, middle)
    return low


def lindley(arrival_s: FloatArray) -> FloatArray:
    """Waits (s) of requests served in order, 1 s each."""
    slack = arrival_s - np.arange(len(arrival_s))
    waits: FloatArray = np.maximum.accumulate(slack) - slack
    return waits


def one_run(wanted: Wanted, seed: int, wait_s: float) -> Outcome:
    """Return what a run of the queue gives, counted like `simcluster goodput` does."""
    arrival = PoissonArrivals().times(wanted.num_requests, wanted.rate_rps, seed)
    waits = lindley(arrival)
    end = float(arrival[-1])
    kept = arrival >= WARMUP * end
    met = waits <= wait_s
    left = arrival + waits + 1
    in_system, served = flow(arrival, arrival + waits + 1, end)
    came = int((arrival > end / 2).sum())
    went = int(((left > end / 2) & (left <= end)).sum())
    return Outcome(
        counted=(int(kept.sum()),),
        met=(int(met[kept].sum()),),
        residence_s=float(waits[kept].mean()) + 1,
        arrivals=math.log(kept.sum() / ((1 - WARMUP) * end * wanted.rate_rps)),
        drift=float(met[kept].mean() - met[arrival >= (1 + WARMUP) / 2 * end].mean()),
        growth=(came - went) / max(came, 1),
        course=course([met], [arrival], end),
        backlogs=in_system,
        served=served,
        end_s=end,
    )


def one_search(seed: int, wait_s: float, settings: Settings) -> Verdict:
    """Return the verdict of a whole search with seed `seed`."""
    going = search(1.0, settings)
    wanted = next(going)
    while True:
        try:
            runs = [one_run(w, replication_seed(seed, w.replication), wait_s) for w in wanted]
            wanted = going.send(runs)
        except StopIteration as end:
            verdict: Verdict = end.value
            return verdict


def coverage(
    num_seeds: int, wait_s: float, settings: Settings, first: int = 0
) -> tuple[float, float, float, int]:
    """Share of intervals that hold the truth, mean half width, bias, median requests."""
    truth = true_goodput(wait_s, settings.target)
    held, widths, errors, cost = 0, [], [], []
    statuses = Counter()
    for seed in range(first, first + num_seeds):
        verdict = one_search(seed, wait_s, settings)
        statuses[verdict.status] += 1
        if verdict.estimate is None:
            continue
        interval = verdict.estimate.interval
        held += interval.low <= truth <= interval.high
        widths.append(verdict.estimate.half_width)
        errors.append(interval.value / truth - 1)
        cost.append(verdict.num_requests)
    mean = statistics.fmean
    print(dict(statuses))
    return held / num_seeds, mean(widths), mean(errors), int(statistics.median(cost))


def main() -> None:
    """Print a line per case."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=400)
    arguments = parser.parse_args()
    for wait_s, target in ((2.0, 0.9), (5.0, 0.9), (10.0, 0.9), (5.0, 0.99)):
        for tolerance in (0.03, 0.01):
            settings = Settings(
                target=target,
                tolerance=tolerance,
                max_requests=200_000,
                least_s=TARGETS_PER_RUN * wait_s,
            )
            held, width, bias, cost = coverage(arguments.seeds, wait_s, settings)
            print(
                f"wait <= {wait_s:g} s for {100 * target:g} %, "
                f"load {true_goodput(wait_s, target):.3f}, "
                f"tolerance {100 * tolerance:g} %: covers {100 * held:.1f} % of {arguments.seeds}, "
                f"half width {100 * width:.2f} %, bias {100 * bias:+.2f} %, {cost:,} requests",
                flush=True,
            )


if __name__ == "__main__":
    main()
