"""Many runs: what more workers gain, and what kills at random moments cost.

python benchmarks/many_runs.py [--kills 20] [--duration 60] [--cpu]
python benchmarks/many_runs.py --dask 4 --seeds 4 --duration 15    # 200 runs on four Dask workers

With --cpu the gain is measured in CPU time, which other work on the machine disturbs less than the
clock: all of one process, over that of the parent and of the busier of two workers. With --dask a
scheduler and workers run on this machine, and the gain is measured in CPU time too.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from bench import events_per_cpu_second

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
    """Return how long the sweep takes with `jobs` workers (s)."""
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        arguments = command(Path(folder) / "out", jobs, duration_s)
        subprocess.run(arguments, check=True, stdout=subprocess.DEVNULL)
        return time.perf_counter() - start


def cpu_gain(duration_s: float, workers: int, seeds: int, address: str | None) -> float:
    """Return the gain of `workers` on free cores over one process, from CPU times."""
    changes = {"workload.duration_s": duration_s, "run.seeds": list(range(seeds))}
    scenario = simcluster.load(SCENARIO, changes)
    cells = sorted(sweep.cells(scenario), key=lambda cell: -(cell.rate_rps or 0.0))
    print(f"{len(cells)} runs, SimPy alone {events_per_cpu_second():,.0f} timeouts per CPU-second")
    took = []
    for jobs in (1, workers):
        dask = address if jobs > 1 else None
        with tempfile.TemporaryDirectory() as name:
            start = time.process_time()
            with store.writing(Path(name) / "out", scenario, cells) as folder:
                if dask:
                    run = functools.partial(sweep._run, folder=None, travels_as=folder.fmt)
                else:
                    run = functools.partial(sweep._run, folder=folder)
                calls = [(run, scenario, cell) for cell in cells]
                busy: dict[int, list[float]] = {}
                for pid, before_s, after_s, cell, outcome in outcomes(
                    _timed, calls, jobs=jobs, dask=dask
                ):
                    busy.setdefault(pid, []).extend((before_s, after_s))
                    folder.keep(outcome, scenario, cell)
            own = time.process_time() - start
            # From its first run to its last; of a process of this machine also its start.
            spent = {pid: max(times) - (min(times) if dask else 0.0) for pid, times in busy.items()}
            others = [round(s, 1) for pid, s in spent.items() if pid != os.getpid()]
            took.append(own + max(others, default=0.0))
            print(f"{jobs} workers: parent {own:.1f} s, workers {others}", flush=True)
    return took[0] / took[1]


def _timed(run: Any, scenario: Any, cell: Any) -> tuple[int, float, float, Any, Any]:
    """Run a cell; return the process, its CPU time before and after (s), cell and outcome."""
    before_s = time.process_time()
    outcome = run(scenario, cell)
    return os.getpid(), before_s, time.process_time(), cell, outcome


@contextlib.contextmanager
def dask_cluster(workers: int) -> Iterator[str]:
    """Give the address of a Dask scheduler with `workers`, processes of this machine."""
    from distributed import Client

    def started(*arguments: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "-m", "dask", *arguments],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    with tempfile.TemporaryDirectory() as name:
        file = Path(name) / "scheduler.json"
        shared = ["--scheduler-file", str(file), "--no-dashboard"]
        processes = [started("scheduler", *shared, "--host", "127.0.0.1", "--port", "0")]
        own = ["--nthreads", "1", "--no-nanny", "--local-directory", name]
        processes += [started("worker", *shared, *own) for _ in range(workers)]
        try:
            while not file.exists() or not file.read_text().endswith("}"):
                time.sleep(0.2)
            address = str(json.loads(file.read_text())["address"])
            with Client(address, timeout=120, set_as_default=False) as client:
                client.wait_for_workers(workers, timeout=300)
            yield address
            threads = Path(f"/proc/{processes[0].pid}/stat")
            if threads.exists():
                fields = threads.read_text().rpartition(")")[2].split()
                spent = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
                print(f"the scheduler's own CPU time: {spent:.1f} s")
        finally:
            for process in reversed(processes):
                process.kill()
                process.wait()


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
    parser.add_argument("--cpu", action="store_true", help="measure the gain in CPU time alone")
    parser.add_argument("--seeds", type=int, default=1, help="runs of each strategy and rate")
    parser.add_argument(
        "--dask",
        type=int,
        default=0,
        help="number of Dask workers; the gain is measured in CPU time",
    )
    options = parser.parse_args()
    if options.dask:
        with dask_cluster(options.dask) as address:
            gain = cpu_gain(options.duration, options.dask, options.seeds, address)
        share = gain / options.dask
        print(f"{options.dask} Dask workers, from CPU times: {gain:.2f} x, {share:.2f} of each")
        return
    if options.cpu:
        gain = cpu_gain(options.duration, 2, options.seeds, None)
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
