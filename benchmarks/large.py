"""Large clusters: ``python benchmarks/large.py``, with ``--rounds`` and ``--cases``.

    fudg      FuDG on 2,048 GPUs, 1,024 prefill and 1,024 decode instances, one per node, 8,000
              requests at 8,192 requests/s
    fudg-nic  the same, eight instances per node behind one NIC, at 1,000 requests/s
    many      100,000 requests at 250 requests/s on 4,096 instances, over the same on 64

CPU seconds of `simulate` alone, on one core; each round runs plain and, where it is installed
compiled, compiled Python in turn.
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
from bench import events_per_cpu_second, on_one_core, with_bytecode

from simcluster._compiled import how_it_runs

_FUDG = 'kind = "fudg"\nplacement = "inter-node"\nprefill_instances = 1024\ndecode_instances = 1024'
_NODG = 'kind = "nodg"\nrouter = "least-loaded"\ninstances = '
CASES = {
    "fudg": (8_000, 8192.0, 2048, 1, _FUDG),
    "fudg-nic": (8_000, 1000.0, 256, 8, _FUDG),
    "many-4096": (100_000, 250.0, 512, 8, f"{_NODG}4096"),
    "many-64": (100_000, 250.0, 8, 8, f"{_NODG}64"),
}
"""Requests, rate (requests/s), nodes, GPUs per node, strategy."""
LOOP = (
    "import sys, time, simcluster\n"
    "scenario = simcluster.load(sys.argv[1])\n"
    "start = time.process_time()\n"
    "simcluster.simulate(scenario)\n"
    "print(time.process_time() - start)\n"
)


def cpu_s(folder: Path, name: str, *, plain: bool) -> float:
    """Return the CPU seconds of one run."""
    count, rate, nodes, per_node, strategy = CASES[name]
    file = folder / f"{name}.toml"
    file.write_text(
        workloads.HEAD.format(
            name=name,
            nodes=nodes,
            per_node=per_node,
            trace="",
            rate=f'rate_rps = {rate}\nnum_requests = {count}\narrivals = "poisson"\n'
            'lengths = { kind = "fixed", prompt_len = 512, output_len = 128 }',
        ).replace('trace = ""\n', "")
        + strategy
        + "\n"
    )
    variables = with_bytecode() | ({"SIMCLUSTER_PURE": "1"} if plain else {})
    command = [sys.executable, "-c", LOOP, str(file)]
    out = subprocess.check_output(command, text=True, env=variables, preexec_fn=on_one_core)
    return float(out)


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cases", nargs="*", choices=list(CASES), default=list(CASES))
    options = parser.parse_args()
    ways = ["plain"] if how_it_runs() != "compiled" else ["plain", "compiled"]
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, {' and '.join(ways)}; ", end="")
    print(f"SimPy alone: {events_per_cpu_second():,.0f} timeouts per CPU-second")
    took: dict[tuple[str, str], list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(options.rounds):
            for name in options.cases:
                for way in ways:
                    seconds = cpu_s(Path(folder), name, plain=way == "plain")
                    took.setdefault((name, way), []).append(seconds)
    for (name, way), seconds in took.items():
        spread = f"{min(seconds):.1f} to {max(seconds):.1f}"
        print(f"{name:10s} {way:9s} {statistics.median(seconds):7.1f} CPU s ({spread})")
    for way in ways:
        if all((name, way) in took for name in ("many-4096", "many-64")):
            pairs = zip(took["many-4096", way], took["many-64", way], strict=True)
            ratio = statistics.median(a / b for a, b in pairs)
            print(f"4,096 instances over 64, {way}: {ratio:.2f} x")


if __name__ == "__main__":
    main()
