"""Many runs: what a second worker gains, and what kills at random moments cost.

python benchmarks/many_runs.py [--kills 20] [--duration 60] [--cpu]

With --cpu the gain is told from CPU time, which other work on the machine disturbs less than the
clock: all of one process, over that of the parent and of the busier of two workers.
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
from typing import Any

import numpy as np

import simcluster
from simcluster.runs import compare as sweep
from simcluster.runs import folder as store
from simcluster.runs.executor import outcomes

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


def cpu_gain(duration_s: float) -> float:
    """Return the gain of a second worker on free cores, from CPU times."""
    scenario = simcluster.load(SCENARIO, {"workload.duration_s": duration_s})
    cells = sorted(sweep.cells(scenario), key=lambda cell: -(cell.rate_rps or 0.0))
    by_jobs = {}
    for jobs in (1, 2):
        with tempfile.TemporaryDirectory() as name:
            start = time.process_time()
            with store.writing(Path(name) / "out", scenario, cells) as folder:
                calls = [(scenario, cell, folder) for cell in cells]
                busy: dict[int, float] = {}
                for pid, cpu_s in outcomes(_timed, calls, jobs=jobs):
                    busy[pid] = max(busy.get(pid, 0.0), cpu_s)
            own = time.process_time() - start
            others = [cpu_s for pid, cpu_s in busy.items() if pid != os.getpid()]
            by_jobs[jobs] = own + max(others, default=0.0)
            print(f"{jobs} workers: parent {own:.1f} s, workers {others}", flush=True)
    return by_jobs[1] / by_jobs[2]


def _timed(*arguments: Any) -> tuple[int, float]:
    """Run a cell; return the process and its CPU time so far (s), start-up included."""
    sweep._run(*arguments)
    return os.getpid(), time.process_time()


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
    parser.add_argument("--cpu", action="store_true", help="tell the gain from CPU times alone")
    options = parser.parse_args()
    if options.cpu:
        gain = cpu_gain(options.duration)
        print(f"two workers against one on free cores, from CPU times: {gain:.2f} x")
        return
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
