"""Run studies of EcoServe's evaluation; each writes a CSV.

python scenarios/ecoserve/run.py slo comparison -o results/ecoserve

Stopped, it goes on where it was: every run is kept. A system in a case that several studies look at
is simulated once.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import json
import sys
import time
import traceback
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from cases import Case
from goodputs import Found, find
from rows import Row

from simcluster.runs.executor import outcomes
from studies import STUDIES

QUICK_ROWS = 2
QUICK_S = 3.0
QUICK_TTFT_S = 0.2


@dataclass
class Job:
    """What a system in a case is wanted for, by all rows together."""

    case: Case
    tables: Sequence[Mapping[str, Any]]
    wanted: list[tuple[str, float]] = field(default_factory=list)
    replications: int = 0


def key_of(row: Row) -> str:
    """Return what rows have in common that can share their runs."""
    return json.dumps([dataclasses.asdict(row.case), row.tables], sort_keys=True, default=list)


def jobs_of(rows: Iterable[Row]) -> dict[str, Job]:
    """Return the jobs that answer `rows`: options are chosen by the paper's metric at P90."""
    jobs: dict[str, Job] = {}
    for row in rows:
        if not row.tables:
            continue
        job = jobs.setdefault(key_of(row), Job(row.case, row.tables))
        job.replications = max(job.replications, row.replications)
        first = [("ecoserve", row.levels[0])] if len(row.tables) > 1 else []
        for wanted in [*first, *((row.metric, level) for level in row.levels)]:
            if wanted not in job.wanted:
                job.wanted.append(wanted)
    for job in jobs.values():
        job.wanted.sort(key=lambda one: one != ("ecoserve", 0.9))
    return jobs


def answer(key: str, job: Job, folder: Path) -> tuple[str, Found | None, float]:
    """Find the goodputs of a job, None if it fails; also return the CPU time (s)."""
    start = time.process_time()
    try:
        found = find(job.case, job.tables, folder, job.wanted, job.replications)
    except Exception:  # the other rows are not lost for it; `run` says that there was one
        print(f"\n{job.case} {job.tables[0]['name']}", file=sys.stderr)
        traceback.print_exc()
        found = None
    return key, found, time.process_time() - start


def cells(row: Row, found: Found) -> dict[str, Any]:
    """Return the line of a row in its study's CSV."""
    line: dict[str, Any] = {**row.label, "system": found.name}
    for level in row.levels:
        goodput = found.goodputs[row.metric, level]
        name = f"p{100 * level:.0f}"
        line[name] = row.scale * goodput.value
        line[f"{name}_low"] = row.scale * goodput.low
        line[f"{name}_high"] = row.scale * goodput.high
    return {**line, "user_ttft_s": found.user_ttft_s}


def write_csv(path: Path, lines: Sequence[Mapping[str, Any]]) -> None:
    """Write lines with four significant digits."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(lines[0]))
        writer.writeheader()
        for line in lines:
            writer.writerow({k: f"{v:.4g}" if isinstance(v, float) else v for k, v in line.items()})


def run(
    names: Sequence[str],
    out: Path,
    *,
    only: Mapping[str, str] | None = None,
    quick: bool = False,
    jobs: int | None = None,
) -> float:
    """Run studies and write ``NAME.csv`` of each into `out`; return the CPU time of it (s).

    `only` keeps the rows whose label has these values.
    """
    folder = out / "runs"
    folder.mkdir(parents=True, exist_ok=True)
    studies = {
        name: [
            row
            for row in STUDIES[name]()
            if all(str(row.label.get(key)) == value for key, value in (only or {}).items())
        ]
        for name in names
    }
    if quick:
        short = {"duration_s": QUICK_S, "ttft_s": QUICK_TTFT_S}  # or only far higher rates miss
        studies = {
            name: [
                dataclasses.replace(row, case=dataclasses.replace(row.case, **short))
                for row in rows[:QUICK_ROWS]
            ]
            for name, rows in studies.items()
        }
    todo = jobs_of(row for rows in studies.values() for row in rows)
    found: dict[str, Found] = {}
    total_s, num_done = 0.0, 0
    calls = [(key, job, folder) for key, job in todo.items()]
    for key, result, cpu_s in outcomes(answer, calls, jobs=jobs):
        total_s += cpu_s
        num_done += 1
        print(f"\r{num_done} of {len(todo)}, {total_s:.0f} CPU-s", end="", file=sys.stderr)
        if result is None:
            continue
        found[key] = result
        for name, rows in studies.items():
            keys = [key_of(row) for row in rows]
            if key in keys:
                known = zip(keys, rows, strict=True)
                write_csv(
                    out / f"{name}.csv", [cells(row, found[k]) for k, row in known if k in found]
                )
    print(file=sys.stderr)
    if len(found) < len(todo):
        raise SystemExit(f"{len(todo) - len(found)} of {len(todo)} failed; their rows are missing")
    return total_s


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the studies named, all by default, and print their goodputs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("studies", nargs="*", metavar="STUDY", help=", ".join(STUDIES))
    parser.add_argument("-o", "--out", type=Path, default=Path("results/ecoserve"))
    parser.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="rows with this value in their label alone; may be repeated",
    )
    parser.add_argument("--quick", action="store_true", help="two rows of short runs each")
    parser.add_argument("--jobs", type=int, help="processes; default: one per core")
    options = parser.parse_args(arguments)
    names = options.studies or list(STUDIES)
    cpu_s = run(
        names,
        options.out,
        only=dict(pair.split("=", 1) for pair in options.only),
        quick=options.quick,
        jobs=options.jobs,
    )
    for name in names:
        path = options.out / f"{name}.csv"
        print(f"{path}\n{path.read_text(encoding='utf-8')}", flush=True)
    print(f"{cpu_s:.0f} CPU-s")


if __name__ == "__main__":
    main()
