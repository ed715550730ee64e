"""How often a collapse is recognised: ``python benchmarks/metastable.py``.

The toy is a queue whose server slows down once the queue is long, as an engine does that preempts
requests when its KV cache is full: a birth-death chain with Poisson arrivals of rate r. Up to
`LIMIT` requests in the system are served at `QUICK`, above it at `SLOW`. At ``SLOW < r < QUICK`` it
works until chance takes it over the limit, and then hardly ever recovers. The probability that a
run of n arrivals has collapsed follows from powers of the chain's transition matrix, not from the
simulation. The smooth queues are M/D/1 and M/M/1, and M/M/1 with heavy-tailed work, near their
limits and far from them.
"""

from __future__ import annotations

import argparse
import functools
import math
from collections import Counter
from collections.abc import Callable

import coverage
import numpy as np

from simcluster.rng import stream
from simcluster.studies.goodput.probe import Outcome, Wanted
from simcluster.studies.goodput.rules import Settings
from simcluster.studies.goodput.runs import (
    TARGETS_PER_RUN,
)
from simcluster.studies.goodput.search import Verdict, search

QUICK, SLOW, LIMIT = 1.0, 0.75, 40
WAIT_S = 60.0
"""Waits up to this are within the target: those of the quick state nearly all are."""
Run = Callable[[Wanted, int], Outcome]


def collapse_probability(rate_rps: float, num_requests: int) -> float:
    """Probability that over twice the limit are in the system at the end of a run of the toy.

    Notes
    -----
    Uniformised: events come at ``rate + QUICK``; one is an arrival, a departure, or, above the
    limit, sometimes nothing. 600 in the system stand for all above.
    """
    size, total = 600, rate_rps + QUICK
    step = np.zeros((size, size))
    for k in range(size):
        down = (QUICK if k <= LIMIT else SLOW) / total if k else 0.0
        up = rate_rps / total if k < size - 1 else 0.0
        step[k, max(k - 1, 0)] += down
        step[k, min(k + 1, size - 1)] += up
        step[k, k] += 1 - up - down
    events = round(num_requests * total / rate_rps)
    return float(np.linalg.matrix_power(step, events)[0, 2 * LIMIT + 1 :].sum())


def toy(wanted: Wanted, seed: int) -> Outcome:
    """Simulate a run of the toy: waits follow from the order of departures."""
    rng = stream(seed, "toy")
    arrival = np.cumsum(rng.exponential(1 / wanted.rate_rps, wanted.num_requests))
    work = rng.exponential(1.0, wanted.num_requests).tolist()
    times, left, free, gone = arrival.tolist(), [], 0.0, 0
    for k, (came, own) in enumerate(zip(times, work, strict=True)):
        start = max(came, free)
        while gone < k and left[gone] <= start:
            gone += 1
        # The server sees the queue when it takes a request: those that came by then and are here.
        waiting = int(np.searchsorted(arrival, start, side="right")) - k
        free = start + own / (SLOW if waiting > LIMIT else QUICK)
        left.append(free)
    ended = np.array(left)
    return coverage.counted(arrival, ended, ended - arrival <= WAIT_S, wanted.rate_rps)


def md1(wait_s: float, wanted: Wanted, seed: int) -> Outcome:
    """Simulate a run of M/D/1 with a service time of 1 s."""
    return coverage.one_run(wanted, seed, wait_s)


def smooth(sigma: float, wait_s: float, wanted: Wanted, seed: int) -> Outcome:
    """Simulate a run of M/G/1 with lognormal work of mean 1 s; ``sigma = 0``: exponential."""
    rng = stream(seed, "smooth")
    num = wanted.num_requests
    arrival = np.cumsum(rng.exponential(1 / wanted.rate_rps, num))
    work = rng.exponential(1.0, num)
    if sigma:
        work = rng.lognormal(-(sigma**2) / 2, sigma, num)
    done = np.cumsum(work)
    slack = arrival - (done - work)
    start = np.maximum.accumulate(slack) + (done - work)
    return coverage.counted(arrival, start + work, start - arrival <= wait_s, wanted.rate_rps)


def one_search(seed: int, run: Run, settings: Settings) -> Verdict:
    """Return the verdict of a whole search with seed `seed`."""
    return coverage.answered(search(1.0, settings), run, seed)


def main() -> None:
    """Print a line per queue."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=100)
    seeds = range(parser.parse_args().seeds)
    settings = Settings(target=0.9, least_s=TARGETS_PER_RUN * WAIT_S, max_requests=8000)
    ended = [one_search(seed, toy, settings) for seed in seeds]
    seen = Counter(v.status for v in ended)
    print(f"toy: {dict(seen)}")
    inside = []
    for verdict in (v for v in ended if v.falls):
        for falls in verdict.falls:
            num = verdict.recommended.num_requests if verdict.recommended else 0
            if num:
                truth = collapse_probability(falls.rate_rps, num)
                hours = num / falls.rate_rps / 3600
                _, low, high = falls.per_hour
                inside.append(low <= -math.log1p(-min(truth, 1 - 1e-12)) / hours <= high)
    print(f"  intervals of collapses per hour that hold the chain's: {np.mean(inside):.1%}")
    chosen = [
        collapse_probability(v.recommended.rate_rps, v.recommended.num_requests)
        for v in ended
        if v.recommended
    ]
    print(f"  probability of a collapse per run at the recommended rate: {np.mean(chosen):.2%}")
    queues: dict[str, tuple[Run, float, float]] = {
        "M/D/1, 10 s, 90 %": (functools.partial(md1, 10.0), 10.0, 0.9),
        "M/D/1, 50 s, 90 %": (functools.partial(md1, 50.0), 50.0, 0.9),
        "M/M/1, 5 s, 90 %": (functools.partial(smooth, 0.0, 5.0), 5.0, 0.9),
        "M/M/1, 50 s, 95 %": (functools.partial(smooth, 0.0, 50.0), 50.0, 0.95),
        "M/G/1, sigma 1, 20 s, 90 %": (functools.partial(smooth, 1.0, 20.0), 20.0, 0.9),
        "M/G/1, sigma 1.5, 50 s, 90 %": (functools.partial(smooth, 1.5, 50.0), 50.0, 0.9),
    }
    for name, (run, wait_s, target) in queues.items():
        own = Settings(target=target, least_s=TARGETS_PER_RUN * wait_s, max_requests=200_000)
        taken = Counter(bool(one_search(seed, run, own).falls) for seed in seeds)
        print(f"{name}: taken for a collapse {taken[True]} of {len(seeds)}", flush=True)


if __name__ == "__main__":
    main()
