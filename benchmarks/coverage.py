"""How often the 95 % interval of a goodput holds the true one: ``python benchmarks/coverage.py``.

One server of constant service time and Poisson arrivals (M/D/1) has a goodput that follows from
theory: the rate at which the share of waits within the target falls to the attainment wanted. The
search of `simcluster goodput` runs on such a queue, its waits from Lindley's recursion; that a
deployment with one sequence and one token gives the same waits is a test. Sequential stopping is
included: every interval is that of a whole search.

With ``--trace N`` every search has a Poisson trace of N requests of its own, from whose blocks its
runs are drawn: the interval then must hold the chance of the trace too.
"""

from __future__ import annotations

import argparse
import math
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np

from simcluster.rng import stream
from simcluster.studies.goodput.arrivals import MOST_BLOCKS, Load, with_chance_of_trace
from simcluster.studies.goodput.probe import Outcome, Wanted
from simcluster.studies.goodput.rules import RULES, SearchRules, Settings
from simcluster.studies.goodput.runs import (
    TARGETS_PER_RUN,
    WARMUP,
    counted_window,
    course,
    flow,
    replication_seed,
)
from simcluster.studies.goodput.search import Search, Verdict, search
from simcluster.units import FloatArray
from simcluster.workload.base import BoolArray, Offer
from simcluster.workload.renewal import PoissonArrivals
from simcluster.workload.trace_blocks import TraceBlocks


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


Draw = Callable[[Wanted, int], FloatArray]
"""Arrivals (s) of a run with a seed."""


def poisson(wanted: Wanted, seed: int) -> FloatArray:
    """Arrivals (s) of a run."""
    return PoissonArrivals().times(wanted.num_requests, wanted.rate_rps, seed)


def one_run(wanted: Wanted, seed: int, wait_s: float, draw: Draw = poisson) -> Outcome:
    """Return what a run of the queue gives."""
    arrival = draw(wanted, seed)
    waits = lindley(arrival)
    return counted(arrival, arrival + waits + 1, waits <= wait_s, wanted.rate_rps)


def counted(arrival: FloatArray, left: FloatArray, met: BoolArray, rate_rps: float) -> Outcome:
    """Return the outcome of a run of one class and one criterion, as `simcluster goodput` counts.

    Parameters
    ----------
    arrival, left : ndarray
        When requests came, rising, and when they left (s).
    met : ndarray
        Which of them met their target.
    rate_rps : float
        Offered rate (requests/s).
    """
    end = float(arrival[-1])
    kept = counted_window(arrival, end)
    late = kept & (arrival >= (WARMUP + RULES.counted / 2) * end)
    in_system, served = flow(arrival, left, end)
    came = int((arrival > end / 2).sum())
    went = int(((left > end / 2) & (left <= end)).sum())
    return Outcome(
        counted=(int(kept.sum()),),
        met=(int(met[kept].sum()),),
        residence_s=float((left - arrival)[kept].mean()),
        arrivals=math.log(kept.sum() / (RULES.counted * end * rate_rps)),
        drift=float(met[kept].mean() - met[late].mean()),
        growth=(came - went) / max(came, 1),
        course=course([met], [arrival], end),
        backlogs=in_system,
        served=served,
        end_s=end,
    )


def answered(going: Search, run: Callable[[Wanted, int], Outcome], seed: int) -> Verdict:
    """Let a search go on to its end, its runs done by `run` with the seeds of its replications."""
    wanted = next(going)
    while True:
        try:
            wanted = going.send([run(w, replication_seed(seed, w.replication)) for w in wanted])
        except StopIteration as end:
            verdict: Verdict = end.value
            return verdict


def one_search(
    seed: int,
    wait_s: float,
    settings: Settings,
    draw: Draw = poisson,
    rules: SearchRules = RULES,
) -> Verdict:
    """Return the verdict of a whole search with seed `seed`."""
    return answered(
        search(1.0, settings, rules), lambda wanted, own: one_run(wanted, own, wait_s, draw), seed
    )


def search_on_trace(seed: int, wait_s: float, settings: Settings, num_requests: int) -> Verdict:
    """Return the verdict of a search whose runs are drawn from the blocks of a Poisson trace."""
    times = np.cumsum(stream(seed, "trace").standard_exponential(num_requests))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.csv"
        rows = (f"{time:.9f},1,1\n" for time in times.tolist())
        path.write_text("arrival_s,prompt_len,output_len\n" + "".join(rows))
        blocks = TraceBlocks(path=str(path), num_blocks=MOST_BLOCKS)
        load = Load(scenario=None, trace=blocks)  # type: ignore[arg-type]  # nothing is simulated

        def draw(wanted: Wanted, own: int) -> FloatArray:
            offer = Offer(num_requests=wanted.num_requests, rate_rps=wanted.rate_rps)
            return blocks.draw(offer, own).arrival_s

        rules = replace(RULES, least_requests=max(RULES.least_requests, load.num_run))
        verdict = one_search(seed, wait_s, settings, draw, rules)
        return with_chance_of_trace(verdict, load)[0]


def coverage(
    num_seeds: int,
    wait_s: float,
    settings: Settings,
    first: int = 0,
    num_of_trace: int | None = None,
) -> tuple[float, float, float, int]:
    """Share of intervals that hold the truth, mean half width, bias, median requests."""
    truth = true_goodput(wait_s, settings.target)
    held, widths, errors, cost = 0, [], [], []
    for seed in range(first, first + num_seeds):
        if num_of_trace is None:
            verdict = one_search(seed, wait_s, settings)
        else:
            verdict = search_on_trace(seed, wait_s, settings, num_of_trace)
        if verdict.estimate is None:
            continue  # holds nothing, and counts
        interval = verdict.estimate.interval
        held += interval.low <= truth <= interval.high
        widths.append(verdict.estimate.half_width)
        errors.append(interval.value / truth - 1)
        cost.append(verdict.num_requests)
    mean = statistics.fmean
    return held / num_seeds, mean(widths), mean(errors), int(statistics.median(cost))


def main() -> None:
    """Print a line per case."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=400)
    parser.add_argument(
        "--trace", type=int, metavar="N", help="draw runs from traces of N requests"
    )
    arguments = parser.parse_args()
    for wait_s, target in ((2.0, 0.9), (5.0, 0.9), (10.0, 0.9), (5.0, 0.99)):
        for tolerance in (0.03, 0.01):
            settings = Settings(
                target=target,
                tolerance=tolerance,
                max_requests=200_000,
                least_s=TARGETS_PER_RUN * wait_s,
            )
            held, width, bias, cost = coverage(
                arguments.seeds, wait_s, settings, num_of_trace=arguments.trace
            )
            print(
                f"wait <= {wait_s:g} s for {100 * target:g} %, "
                f"load {true_goodput(wait_s, target):.3f}, "
                f"tolerance {100 * tolerance:g} %: covers {100 * held:.1f} % of {arguments.seeds}, "
                f"half width {100 * width:.2f} %, bias {100 * bias:+.2f} %, {cost:,} requests",
                flush=True,
            )


if __name__ == "__main__":
    main()
