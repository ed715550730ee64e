"""Twelve cases, now against another version, in paired rounds: ``python benchmarks/gate.py REF``.

    python benchmarks/gate.py v0.1.0     # this checkout against a tag, branch or commit, both plain
    python benchmarks/gate.py --plain    # compiled (make fast) against plain, of this checkout

A round runs every case once with each version, in turn, each in a process of its own on one core.
A case has become slower if it takes more than `LIMIT` times the CPU seconds of the other version in
more than `SHARE` of the rounds: one slow round is the machine, four of five are the code. Exit
status 1 then. Nothing that depends on the machine is compared over time.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import workloads
from bench import on_one_core, with_bytecode

ROOT = Path(__file__).resolve().parents[1]
LIMIT = 1.10
ROUNDS = 5
SHARE = 0.7
COUNT = 3000
"""Requests of a case."""

SIMULATES = (
    "import sys, time, simcluster\n"
    "scenario = simcluster.load(sys.argv[1])\n"
    "simcluster.simulate(scenario)\n"
    "start = time.process_time()\n"
    "for _ in range(3):\n"
    "    simcluster.simulate(scenario)\n"
    "print(time.process_time() - start)\n"
)
"""CPU seconds of the simulation alone, three times behind one that does not count."""

LOOPS = [
    (strategy, kind)
    for strategy in ("nodg", "chunked", "fudg", "padg")
    for kind in ("fixed", "chat")
]
"""Strategy and kind of requests of the cases of the loop alone."""
QUICK = str(ROOT / "scenarios" / "quickstart.toml")
WHOLE = {
    "help": ["--help"],
    "one request": [
        "run",
        QUICK,
        "--set",
        "workload.duration_s=",
        "--set",
        "workload.num_requests=1",
    ],
    "check": ["check", QUICK],
    "compare": ["compare", QUICK, "--jobs", "1", "--set", "workload.duration_s=10"],
}
"""Arguments of the cases of a whole process."""


class Version(NamedTuple):
    """One of the two."""

    name: str
    checkout: Path
    variables: Mapping[str, str]

    def seconds(self, command: list[str], *, told: bool) -> float:
        """CPU seconds of a command: those that it prints, or those of its whole process."""
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        run = subprocess.run(
            command,
            check=True,
            capture_output=True,
            text=True,
            env={**with_bytecode(), "PYTHONPATH": str(self.checkout), **self.variables},
            cwd=tempfile.gettempdir(),
            preexec_fn=on_one_core,
        )
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        if told:
            return float(run.stdout)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def cases(folder: Path) -> Iterator[tuple[str, list[str], bool]]:
    """Give name and command of each case, and whether it prints its seconds."""
    for strategy, kind in LOOPS:
        trace = folder / f"{kind}.csv"
        if not trace.exists():
            workloads.write_trace(trace, kind, COUNT)
        file = folder / f"{strategy}-{kind}.toml"
        file.write_text(workloads.scenario(strategy, trace, None))
        yield f"{strategy} {kind}", [sys.executable, "-c", SIMULATES, str(file)], True
    for name, args in WHOLE.items():
        yield name, [sys.executable, "-m", "simcluster", *args], False


@contextlib.contextmanager
def checkout(ref: str) -> Iterator[Path]:
    """Give a folder with the files of a commit of this repository."""
    with tempfile.TemporaryDirectory() as name:
        archive = subprocess.run(
            ["git", "-C", str(ROOT), "archive", ref, "simcluster"], check=True, capture_output=True
        )
        subprocess.run(["tar", "-x", "-C", name], check=True, input=archive.stdout)
        yield Path(name)


def slower(now: Version, other: Version, rounds: int, only: Collection[str] | None) -> list[str]:
    """Print the cases, and return those that have become slower."""
    found = []
    heads = [f"round {number}" for number in range(1, rounds + 1)]
    print(f"CPU seconds of {now.name} over those of {other.name}\n")
    print(f"{'case':16s}" + "".join(f"{head:>9s}" for head in heads) + "   verdict")
    with tempfile.TemporaryDirectory() as folder:
        for name, command, told in cases(Path(folder)):
            if only is not None and name not in only:
                continue
            ratios = []
            for number in range(rounds):
                pair = (now, other) if number % 2 else (other, now)
                took = {version.name: version.seconds(command, told=told) for version in pair}
                ratios.append(took[now.name] / took[other.name])
            is_slower = sum(ratio > LIMIT for ratio in ratios) > SHARE * rounds
            verdict = "SLOWER" if is_slower else "ok"
            found += [name] * is_slower
            print(
                f"{name:16s}" + "".join(f"{r:9.2f}" for r in ratios) + f"   {verdict}", flush=True
            )
    return found


def main() -> int:
    """Compare, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("ref", nargs="?", help="tag, branch or commit to compare with")
    parser.add_argument("--plain", action="store_true", help="compiled against plain")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--cases", nargs="*", help="these alone, such as 'nodg fixed'")
    options = parser.parse_args()
    if options.plain == bool(options.ref):
        parser.error("give a REF or --plain")
    pure = {"SIMCLUSTER_PURE": "1"}
    if options.plain:
        sys.path.insert(0, str(ROOT))
        from simcluster._compiled import why_not

        if reason := why_not():
            parser.error(f"this checkout does not run compiled: {reason} (make fast)")
        found = slower(
            Version("compiled", ROOT, {}),
            Version("plain", ROOT, pure),
            options.rounds,
            options.cases,
        )
    else:
        with checkout(options.ref) as folder:
            found = slower(
                Version("now", ROOT, pure),
                Version(options.ref, folder, pure),
                options.rounds,
                options.cases,
            )
    if found:
        print(f"\nslower by more than {LIMIT - 1:.0%}: {', '.join(found)}")
        return 1
    print(f"\nno case is slower by more than {LIMIT - 1:.0%} in {SHARE:.0%} of the rounds")
    return 0


if __name__ == "__main__":
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    sys.exit(main())
