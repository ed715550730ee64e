"""Goodputs of one run per rate against long searches: how far the sentence of ``compare`` holds.

    python benchmarks/grid_error.py                 # quickstart, six seeds: about 6 CPU minutes
    python benchmarks/grid_error.py FILE --seeds 3

`simcluster compare` with one seed says "good to about x %" of its goodputs; the reference is
`simcluster goodput` with its default tolerance.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

import simcluster
from simcluster.frames.goodput import goodput_table, wanted_shares
from simcluster.studies.goodput import find

QUICKSTART = Path(__file__).parent.parent / "scenarios" / "quickstart.toml"


def main() -> None:
    """Compare, search, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", nargs="?", type=Path, default=QUICKSTART)
    parser.add_argument("--seeds", type=int, default=6)
    asked = parser.parse_args()
    scenario = simcluster.load(asked.file)
    found = find(scenario)
    known = {
        name: one.goodput.value for name, one in found.verdicts.items() if one.goodput is not None
    }
    seeds = list(range(1, asked.seeds + 1))
    sweep = simcluster.compare(simcluster.load(asked.file, {"run.seeds": seeds})).sweep
    wanted = wanted_shares(scenario.environment.slo)
    inside, errors, told = 0, [], []
    for seed in seeds:
        rows = goodput_table(sweep[sweep["seed"] == seed], wanted)
        halves = rows["goodput_rps_error"] / rows["goodput_rps"]
        told.append(float(np.nanmax(halves)))
        for name, value, half in zip(rows["strategy"], rows["goodput_rps"], halves, strict=True):
            if name in known and half == half:
                errors.append(value / known[name] - 1)
                inside += abs(value - known[name]) <= half * value
        print(f"seed {seed}: good to about {100 * told[-1]:.1f} %")
    most = 100 * np.max(np.abs(errors))
    print(
        f"{len(errors)} goodputs: {inside} inside their own intervals; errors "
        f"{100 * np.sqrt(np.mean(np.square(errors))):.1f} % (rms), at most {most:.1f} %; told "
        f"{100 * min(told):.1f} to {100 * max(told):.1f} %"
    )


if __name__ == "__main__":
    main()
