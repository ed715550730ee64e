"""How many requests a CPU-second carries: ``python benchmarks/bench.py``.

Whole process = start-up, reading the trace, simulation, Parquet and JSON output, in CPU seconds
(user + system) of a child process kept on one core. Loop = the simulation alone, inside one
process, CPU seconds again. Medians over the repetitions. Nothing is asserted: the figures go into
``benchmarks/RESULTS.md`` by hand, with the machine.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
import workloads

WHOLE = [
    ("nodg", "fixed", 10_000, None),
    ("nodg", "fixed", 100_000, None),
    ("nodg", "chat", 10_000, None),
    ("fudg", "fixed", 10_000, None),
    ("padg", "fixed", 10_000, None),
    ("padg64", "fixed", 10_000, None),
]
LOOP = [
    ("nodg", "fixed", 10_000, None),
    ("nodg", "fixed", 100_000, None),
    ("chunked", "fixed", 10_000, None),
    ("nodg", "chat", 10_000, None),
    ("fudg", "fixed", 10_000, None),
    ("padg", "fixed", 10_000, None),
]


def on_one_core() -> None:
    """Keep this process on one core: on several, idle threads of NumPy's BLAS spin at its start."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})


def with_bytecode() -> dict[str, str]:
    """Return an environment in which compiled modules are kept, as in an installation."""
    return {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}


Case = tuple[str, str, int, float | None]
"""Strategy, kind of requests, how many, and their rate (requests/s)."""


def import_s() -> float:
    """CPU seconds of importing the package."""
    code = "import time; a = time.process_time(); import simcluster; print(time.process_time() - a)"
    out = subprocess.run(
        [sys.executable, "-c", code],
        check=True,
        capture_output=True,
        text=True,
        env=with_bytecode(),
        preexec_fn=on_one_core,
    )
    return float(out.stdout)


def written(folder: Path, case: Case) -> Path:
    """Return the scenario file of `case`, with its trace beside it."""
    strategy, kind, count, rate = case
    trace = folder / f"{kind}-{count}.csv"
    if not trace.exists():
        workloads.write_trace(trace, kind, count)
    file = folder / "scenario.toml"
    file.write_text(workloads.scenario(strategy, trace, rate))
    return file


def whole_process(folder: Path, case: Case) -> tuple[float, float]:
    """CPU seconds and peak memory (MB) of ``simcluster run`` on `case`."""
    file = written(folder, case)
    command = [sys.executable, "-m", "simcluster", "run", str(file), "--json"]
    command += ["-o", tempfile.mkdtemp(dir=folder)]  # a finished run would not be done again
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, env=with_bytecode(), preexec_fn=on_one_core
    )
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(command)} failed")
    return usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1e3


def loop(folder: Path, case: Case) -> tuple[float, float, float]:
    """CPU seconds of the simulation alone, events per request, attainment."""
    file = written(folder, case)
    code = (
        "import json, sys, time, simcluster, numpy as np\n"
        "scenario = simcluster.load(sys.argv[1])\n"
        "start = time.process_time()\n"
        "result = simcluster.simulate(scenario)\n"
        "cpu = time.process_time() - start\n"
        "r = result.columns['requests']\n"
        "met = (r['ttft_s'] <= 5.0) & ~(r['tpot_s'] > 0.1)\n"
        "print(json.dumps([cpu, result.num_events / len(met), float(met.mean())]))\n"
    )
    out = subprocess.run(
        [sys.executable, "-c", code, str(file)],
        check=True,
        capture_output=True,
        text=True,
        env=with_bytecode(),
        preexec_fn=on_one_core,
    )
    cpu, events, attainment = json.loads(out.stdout)
    return cpu, events, attainment


def saturation(folder: Path, strategy: str, target: float = 0.9) -> tuple[float, float, float]:
    """Rate (requests/s) just past which attainment falls below `target`, and CPU seconds.

    The CPU seconds are those of 10,000 requests just past that rate and at half of it.
    """
    low, high = 32.0, 1024.0
    while high / low > 1.02:
        middle = (low * high) ** 0.5
        attainment = loop(folder, (strategy, "fixed", 10_000, middle))[2]
        low, high = (middle, high) if attainment >= target else (low, middle)
    full, half = (
        statistics.median(loop(folder, (strategy, "fixed", 10_000, rate))[0] for _ in range(3))
        for rate in (high, high / 2)
    )
    return high, full, half


def events_per_cpu_second(count: int = 500_000) -> float:
    """Timeouts per CPU-second of SimPy alone: the floor."""
    import simpy

    def ticker(env: simpy.Environment) -> Generator[simpy.Event, Any, None]:
        for _ in range(count):
            yield env.timeout(1.0)

    env = simpy.Environment()
    env.process(ticker(env))
    start = time.process_time()
    env.run()
    return count / (time.process_time() - start)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeat", type=int, default=3, help="runs of each case")
    parser.add_argument("--million", action="store_true", help="also the memory of 1,000,000")
    parser.add_argument("--saturation", action="store_true", help="also the cost near saturation")
    options = parser.parse_args()
    print(f"SimPy alone: {events_per_cpu_second():,.0f} timeouts per CPU-second")
    imports = statistics.median(import_s() for _ in range(options.repeat + 1))
    print(f"import simcluster: {imports:.2f} CPU s\n")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        print(f"{'whole process':24s} {'requests':>9s} {'CPU s':>7s} {'per CPU-s':>10s} {'MB':>6s}")
        cases = [*WHOLE, ("nodg", "fixed", 1_000_000, None)] if options.million else WHOLE
        for case in cases:
            repeat = options.repeat if case[2] < 1_000_000 else 1
            runs = [whole_process(folder, case) for _ in range(repeat)]
            cpu = statistics.median(run[0] for run in runs)
            memory = max(run[1] for run in runs)
            label = f"{case[0]}, {case[1]}"
            print(f"{label:24s} {case[2]:9,d} {cpu:7.2f} {case[2] / cpu:10,.0f} {memory:6.0f}")
        print(
            f"\n{'loop alone':24s} {'requests':>9s} {'CPU s':>7s} {'per CPU-s':>10s} "
            f"{'events':>6s} {'within':>6s}"
        )
        for case in LOOP:
            runs3 = [loop(folder, case) for _ in range(options.repeat)]
            cpu = statistics.median(run[0] for run in runs3)
            _, events, attainment = runs3[0]
            label = f"{case[0]}, {case[1]}"
            print(
                f"{label:24s} {case[2]:9,d} {cpu:7.2f} {case[2] / cpu:10,.0f} "
                f"{events:6.1f} {attainment:6.3f}"
            )
        if options.saturation:
            print(f"\n{'near saturation':24s} {'req/s':>9s} {'CPU s':>7s} {'half load':>10s} ratio")
            for strategy in workloads.STRATEGIES:
                rate, full, half = saturation(folder, strategy)
                print(f"{strategy:24s} {rate:9.0f} {full:7.2f} {half:10.2f} {full / half:5.2f}")
        own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
        print(f"\n(this script itself: {own:.0f} MB)")


if __name__ == "__main__":
    main()
