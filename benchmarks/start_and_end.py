"""How attainment settles in a run and how it ends: ``python benchmarks/start_and_end.py SCENARIO``.

Requests of a run that begins empty meet short queues, and those of its end have nobody behind them.
Either is within its targets more often than in a cluster that runs for ever. The table has the
share within the targets of the requests that came in each mean residence time of a run, over many
runs at about the goodput: what `simcluster goodput` must not count shows at both of its ends.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import numpy as np

from simcluster.frames.metrics import met_targets
from simcluster.runs.cell import Cell
from simcluster.runs.simulate import simulate
from simcluster.scenario.file import load
from simcluster.scenario.scenario import Scenario
from simcluster.studies.goodput.runs import guesses_of, load_of, replication_seed


def main() -> None:
    """Print the table of each strategy."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("scenario", type=Path)
    parser.add_argument("--rate", action="append", required=True, metavar="STRATEGY=RATE")
    parser.add_argument("--runs", type=int, default=60)
    parser.add_argument("--residences", type=float, default=20.0)
    args = parser.parse_args()
    scenario = load(args.scenario)
    scenario = load_of(scenario, guesses_of(scenario)).scenario
    for name, _, rate in (given.partition("=") for given in args.rate):
        table(scenario, name, float(rate), args.runs, args.residences)


def table(scenario: Scenario, name: str, rate_rps: float, num_runs: int, residences: float) -> None:
    """Print the attainment of one strategy by residence time."""
    slo, stay_s, shares = scenario.environment.slo, math.nan, []
    num = 4000
    for k in range(num_runs + 1):
        cell = Cell(name, rate_rps, replication_seed(1, k), num)
        frame = simulate(scenario, cell).columns["requests"]
        arrival, left = frame["arrival_s"], frame["last_output_s"]
        if k == 0:  # how long a run must be
            late = arrival > arrival[-1] / 2
            stay_s = float((left - arrival)[late].mean())
            num = math.ceil(residences * stay_s * rate_rps)
            continue
        met = met_targets(frame, slo)["joint"]
        from_end = ((arrival[-1] - arrival) / stay_s).astype(np.int64)
        from_start = (arrival / stay_s).astype(np.int64)
        half = int(residences / 2)
        shares.append(
            [met[from_start == i].mean() for i in range(half)]
            + [met[from_end == i].mean() for i in reversed(range(half))]
        )
    mean = 100 * np.mean(shares, axis=0)
    error = 100 * np.std(shares, axis=0, ddof=1) / math.sqrt(num_runs)
    print(f"{name}, {rate_rps:g} requests/s, residence {stay_s:.1f} s, {num_runs} runs of {num}")
    print("  within the targets, %, by residence time: " + " ".join(f"{x:.1f}" for x in mean))
    print("  standard error: " + " ".join(f"{x:.1f}" for x in error))


if __name__ == "__main__":
    main()
