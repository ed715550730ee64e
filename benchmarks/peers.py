"""Beside other simulators: the same requests, whole processes, in turn.

    python -m venv PEER && PEER/bin/pip install ai-dynamo==1.4.2     # Rust replay, `dynamo.replay`
    python benchmarks/peers.py PEER [PEER ...] [--simcluster PYTHON] [--rounds 5] [--cases NAME ...]

Each peer is the folder of a virtual environment with ``ai-dynamo``. ``--simcluster`` is the Python
of an environment in which simcluster is compiled (``SIMCLUSTER_COMPILE=1 pip install .``); by
default this one. A round runs every tool once on a case, in turn. CPU is user + system of the child
and its own children, on one core; simcluster reads the trace, simulates and writes Parquet and
JSON, the peers read their trace and write their JSON report. Printed: medians, and requests per
CPU-second of simcluster over the peer's. The two model different things (the peer's step times are
a polynomial, its KV transfers do not share links): the ratio says what a run costs.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import workloads
from bench import events_per_cpu_second, on_one_core, with_bytecode


class Case(NamedTuple):
    """One of the comparison."""

    strategy: str
    kind: str
    num_requests: int


CASES = {
    "start-up": Case("nodg", "fixed", 1),
    "10,000 fixed": Case("nodg", "fixed", 10_000),
    "10,000 chat": Case("nodg", "chat", 10_000),
    "4 prefill + 4 decode": Case("fudg", "fixed", 10_000),
    "100,000 fixed": Case("nodg", "fixed", 100_000),
}
_KV_BYTES_PER_TOKEN = 524288
"""Of Llama-2-7B: 2 x 32 layers x 32 heads x 128 numbers x 2 bytes."""
_GB_PER_S = 3.125
"""25 Gbit/s."""


def write_trace(path: Path, case: Case) -> None:
    """Write the requests in MoonCake's format, of which no two share a block."""
    number = 0
    with path.open("w") as file:
        for arrival_s, prompt, output in workloads.rows(case.kind, case.num_requests):
            blocks = -(-prompt // 512)
            row = {
                "timestamp": round(arrival_s * 1000, 3),
                "input_length": prompt,
                "output_length": output,
                "hash_ids": list(range(number, number + blocks)),
            }
            number += blocks
            file.write(json.dumps(row) + "\n")


def ours(python: str, folder: Path, case: Case, out: Path) -> list[str]:
    """Return simcluster's command."""
    trace = folder / "trace.csv"
    if not trace.exists():
        workloads.write_trace(trace, case.kind, case.num_requests)
        (folder / "scenario.toml").write_text(workloads.scenario(case.strategy, trace, None))
    scenario = str(folder / "scenario.toml")
    return [python, "-m", "simcluster", "run", scenario, "--json", "-o", str(out / "results")]


def theirs(python: str, folder: Path, case: Case, out: Path) -> list[str]:
    """Return the command of a peer."""
    trace = folder / "trace.jsonl"
    if not trace.exists():
        write_trace(trace, case)
    command = [python, "-m", "dynamo.replay", str(trace), "--report-json", str(out / "report.json")]
    if case.strategy != "fudg":
        return [*command, "--num-workers", "8"]
    for role in ("prefill", "decode"):
        arguments = {
            "worker_type": role,
            "kv_bytes_per_token": _KV_BYTES_PER_TOKEN,
            "kv_transfer_bandwidth": _GB_PER_S,
        }
        command += [f"--num-{role}-workers", "4", f"--{role}-engine-args", json.dumps(arguments)]
    return command


def cpu_s(command: list[str], folder: Path) -> float:
    """Run a command to its end; return its CPU seconds."""
    variables = {k: v for k, v in with_bytecode().items() if k != "PYTHONPATH"}
    with (folder / "out").open("wb") as out, (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            command,
            stdout=out,
            stderr=log,
            cwd=folder,
            env={**variables, "HF_HUB_OFFLINE": "1"},
            preexec_fn=on_one_core,
        )
        _, status, usage = os.wait4(process.pid, 0)
    if status:
        tail = (folder / "log").read_text(errors="replace").strip()[-400:]
        raise SystemExit(f"{' '.join(command)} failed: {tail}")
    return usage.ru_utime + usage.ru_stime


def finished(tool: str, out: Path) -> int:
    """Return how many requests a run finished."""
    if tool == "simcluster":
        row = json.loads((out / "out").read_text())["rows"][0]
        return int(row["num_finished"])
    return int(json.loads((out / "report.json").read_text())["completed_requests"])


def version(python: str, package: str) -> str:
    """Return the version of a package in an environment; of simcluster also how it runs."""
    command = [python, "-m", "simcluster", "--version"]
    if package != "simcluster":
        code = f"import importlib.metadata as m; print({package!r}, m.version({package!r}))"
        command = [python, "-c", code]
    variables = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    run = subprocess.run(
        command,
        check=True,
        capture_output=True,
        text=True,
        env=variables,
        cwd=tempfile.gettempdir(),
    )
    return run.stdout.strip()


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("peers", nargs="+", type=Path, help="virtual environments with ai-dynamo")
    parser.add_argument("--simcluster", default=sys.executable, help="Python with simcluster")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cases", nargs="*", choices=list(CASES), default=list(CASES))
    options = parser.parse_args()
    tools = {"simcluster": options.simcluster}
    names = [version(options.simcluster, "simcluster")]
    for peer in options.peers:
        python = str(peer.absolute() / "bin" / "python")
        names.append(version(python, "ai-dynamo"))
        tools[names[-1]] = python
    machine = f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"
    print(f"{machine}, Python {platform.python_version()}; {', '.join(names)}")
    print(f"SimPy alone: {events_per_cpu_second():,.0f} timeouts per CPU-second\n")
    print("| case | " + " | ".join(f"{tool} (CPU s)" for tool in tools) + " | ", end="")
    print(" | ".join(f"over {tool} (its range)" for tool in list(tools)[1:]) + " |")
    print("|---" * (2 * len(tools)) + "|", flush=True)
    for name in options.cases:
        case = CASES[name]
        took: dict[str, list[float]] = {tool: [] for tool in tools}
        with tempfile.TemporaryDirectory() as place:
            for number in range(options.rounds + 1):
                for tool, python in tools.items():
                    out = Path(tempfile.mkdtemp(dir=place))
                    make = ours if tool == "simcluster" else theirs
                    seconds = cpu_s(make(python, Path(place), case, out), out)
                    if number:  # the first round compiles byte code
                        took[tool].append(seconds)
                    elif (count := finished(tool, out)) != case.num_requests:
                        raise SystemExit(f"{tool} finished {count} of {case.num_requests}: {name}")
        mine = took["simcluster"]
        cells = [f"{statistics.median(seconds):.2f}" for seconds in took.values()]
        for tool in list(tools)[1:]:
            ratios = [b / a for a, b in zip(mine, took[tool], strict=True)]
            low, high = min(ratios), max(ratios)
            cells.append(f"{statistics.median(ratios):.2f} ({low:.2f} to {high:.2f})")
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
