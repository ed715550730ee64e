"""Many runs: what a second worker gains, and what kills at random moments cost.

python benchmarks/many_runs.py [--kills 20] [--duration 60]
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

import simcluster

SCENARIO = Path(__file__).parents[1] / "scenarios" / "quickstart.toml"


def command(out: Path, jobs: int, duration_s: float) -> list[str]:
    """Return the command line of the sweep."""
    return [
        *(sys.executable, "-m", "simcluster", "compare", str(SCENARIO), "--json"),
        *("-o", str(out), "--jobs", str(jobs), "--set", f"workload.duration_s={duration_s}"),
    ]


def wall_s(jobs: int, duration_s: float) -> float:
    """Return how long the sweep takes with so many workers (s)."""
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        arguments = command(Path(folder) / "out", jobs, duration_s)
        subprocess.run(arguments, check=True, stdout=subprocess.DEVNULL)
        return time.perf_counter() - start


def written(place: Path) -> dict[str, int]:
    """Return when each recorded run was written (ns)."""
    return {p.parent.name: p.stat().st_mtime_ns for p in place.glob("cells/[!.]*/cell.json")}


def kills(count: int, duration_s: float, mean_s: float) -> tuple[int, int, int]:
    """Kill the sweep `count` times, at random moments; half the time the parent alone.

    Returns the number of runs that were recorded before a kill, of those lost or done again after
    it, and of runs in the end.
    """
    rng = np.random.default_rng(0)
    seen = bad = 0
    with tempfile.TemporaryDirectory() as name:
        out, partial = Path(name) / "out", Path(name) / ".out.partial"
        known: dict[str, int] = {}
        for i in range(count):
            process = subprocess.Popen(
                command(out, 2, duration_s), start_new_session=True, stdout=subprocess.DEVNULL
            )
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(float(rng.uniform(0.0, 2.0 * mean_s)))
            if process.poll() is None:
                kill = os.kill if i % 2 else os.killpg
                kill(process.pid, signal.SIGKILL)
            process.wait()
            now = written(partial if partial.exists() else out)
            bad += sum(now.get(cell) != stamp for cell, stamp in known.items())
            known = now
            seen = max(seen, len(known))
        subprocess.run(command(out, 2, duration_s), check=True, stdout=subprocess.DEVNULL)
        final = written(out)
        bad += sum(final.get(cell) != stamp for cell, stamp in known.items())
        resumed = simcluster.read(out).sweep
        fresh = Path(name) / "fresh"
        subprocess.run(command(fresh, 2, duration_s), check=True, stdout=subprocess.DEVNULL)
        assert resumed.equals(simcluster.read(fresh).sweep)
    return seen, bad, len(final)


def main() -> None:
    """Measure and print both."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--duration", type=float, default=240.0, help="length of each run (s)")
    parser.add_argument("--repeat", type=int, default=2)
    options = parser.parse_args()
    ratios = []
    for _ in range(options.repeat):
        one, two = wall_s(1, options.duration), wall_s(2, options.duration)
        ratios.append(one / two)
        print(f"one worker {one:.1f} s, two {two:.1f} s: {one / two:.2f} x", flush=True)
    print(f"two workers against one: {np.median(ratios):.2f} x")
    if options.kills:
        seen, bad, total = kills(options.kills, options.duration, mean_s=2.5)
        print(
            f"{options.kills} kills: {seen} of {total} runs recorded before the last, "
            f"{bad} lost or done again"
        )


if __name__ == "__main__":
    main()
