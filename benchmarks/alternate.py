"""Engine loop of this checkout against another one: ``python benchmarks/alternate.py ../other``.

Both simulate the same requests in turn, A B A B .., so that a machine whose speed drifts treats
both alike; what is printed is the median of the ratios pair by pair. CPU seconds of the simulation
alone, each run in a process of its own on one core.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import workloads
from bench import LOOP, on_one_core, with_bytecode

ROOT = Path(__file__).resolve().parents[1]
CODE = (
    "import sys, time, simcluster\n"
    "scenario = simcluster.load(sys.argv[1])\n"
    "start = time.process_time()\n"
    "simcluster.simulate(scenario)\n"
    "print(time.process_time() - start)\n"
)


def loop_s(checkout: Path, file: Path) -> float:
    """CPU seconds of the simulation of `file` by the package in `checkout`."""
    env = {**with_bytecode(), "PYTHONPATH": str(checkout)}
    command = [sys.executable, "-c", CODE, str(file)]
    out = subprocess.run(
        command, check=True, capture_output=True, text=True, env=env, preexec_fn=on_one_core
    )
    return float(out.stdout)


def main() -> None:
    """Print requests per CPU-second of both and the ratio, case by case."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("other", type=Path, help="checkout to compare with")
    parser.add_argument("--pairs", type=int, default=7, help="runs of each")
    parser.add_argument("--cases", nargs="*", help="strategy-kind-count, such as nodg-fixed-10000")
    options = parser.parse_args()
    print(f"{'loop alone':24s} {'here /CPU-s':>12s} {'other /CPU-s':>12s} {'here/other':>10s}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for strategy, kind, count, rate in LOOP:
            label = f"{strategy}-{kind}-{count}"
            if options.cases and label not in options.cases:
                continue
            trace = folder / f"{kind}-{count}.csv"
            if not trace.exists():
                workloads.write_trace(trace, kind, count)
            file = folder / "scenario.toml"
            file.write_text(workloads.scenario(strategy, trace, rate))
            pairs = [
                (loop_s(ROOT, file), loop_s(options.other.resolve(), file))
                for _ in range(options.pairs)
            ]
            here, other = (statistics.median(column) for column in zip(*pairs, strict=True))
            ratio = statistics.median(theirs / ours for ours, theirs in pairs)
            print(f"{label:24s} {count / here:12,.0f} {count / other:12,.0f} {ratio:10.3f}")
            sys.stdout.flush()


if __name__ == "__main__":
    os.chdir(ROOT / "benchmarks")
    main()
