"""The runs of a search on disk: each is written as soon as it is there and found by what it is.

A result folder holds ``goodput.json``, ``probes.csv``, ``scenario.toml``, and in ``runs`` a file
per run, named by a digest of all that decides it. As long as a search is under way it is a hidden
sibling; whatever ends the search, its runs stay there, and the next one into the same folder goes
on from them. Once its goodputs are written the folder takes its place, even if comparing them
fails.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import logging
import os
import shutil
import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from simcluster.errors import DataError
from simcluster.runs import output, recorded
from simcluster.scenario import arguments
from simcluster.scenario.scenario import Scenario
from simcluster.studies.goodput.probe import Outcome
from simcluster.studies.goodput.runs import Cell, simulate_cells

FILES: Final = ("goodput.json", "probes.csv", "scenario.toml")
"""Beside the runs."""
_RUNS: Final = "runs"
_ID_LEN: Final = 16

_log = logging.getLogger("simcluster")


class Run(NamedTuple):
    """A run as it is found on disk.

    Attributes
    ----------
    path : Path
        Its file, ``IDENTITY.json``.
    strategy : str
        Name of its strategy; empty where the file is damaged.
    scope : str
        Digest of what decides it beside rate, seed and length (`scope_of`).
    made_by : str
        What made it (`runs.recorded.made_by`).
    outcome : Outcome or None
        What it gave; None where the file is damaged.
    """

    path: Path
    strategy: str
    scope: str
    made_by: str
    outcome: Outcome | None


def scope_of(scenario: Scenario, strategy: str) -> str:
    """Return a digest of all that decides the runs of a strategy but rate, seed and length.

    As `runs.recorded.identity`: prices and the wanted attainment are not in it.
    """
    workload = dataclasses.replace(scenario.workload, num_requests=None, duration_s=None)
    scenario = dataclasses.replace(scenario, workload=workload)
    return recorded.identity(scenario, recorded.Cell(strategy, 0.0, 0))


def identity(scope: str, cell: Cell) -> str:
    """Return a digest of all that decides one run, but the program."""
    text = f"{scope} {float(cell.rate_rps)!r} {int(cell.seed)} {int(cell.num_requests)}"
    return hashlib.sha256(text.encode()).hexdigest()[:_ID_LEN]


def _digest(record: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def read_run(path: Path) -> Run:
    """Return the run in a file, without an outcome if the file is not as it was written."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        known = record.pop("sha256")
        if known != _digest(record):
            raise ValueError(known)
        values: dict[str, Any] = record["outcome"]
        values = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        outcome = Outcome(**values)
        return Run(path, record["strategy"], record["scope"], record["made_by"], outcome)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return Run(path, "", "", "", None)


class Kept:
    """Runs the cells of searches, takes those that are there, and writes each new one at once.

    A `runs.Simulate`.

    Parameters
    ----------
    folder : Path
        Where the results are being written.
    scenario : Scenario
        What is searched.
    runs : sequence of Run
        What is there, in ``folder/runs``.
    jobs, dask : int, str, optional
        As in `executor.outcomes`.
    """

    def __init__(
        self,
        folder: Path,
        scenario: Scenario,
        runs: Sequence[Run],
        *,
        jobs: int | None = None,
        dask: str | None = None,
    ) -> None:
        self.folder = folder
        self._jobs, self._dask = jobs, dask
        self._known = {run.path.stem: run.outcome for run in runs}
        self._scopes = {s.name: scope_of(scenario, s.name) for s in scenario.strategies}
        self._makers = _makers(scenario)

    def __call__(self, scenario: Scenario, cells: Sequence[Cell]) -> list[Outcome]:
        """Return the outcomes of `cells`, in their order."""
        found = {cell: self._known.get(self._name(cell)) for cell in cells}
        left = [cell for cell, outcome in found.items() if outcome is None]

        def keep(cell: Cell, outcome: Outcome) -> None:
            self._write(cell, outcome)
            found[cell] = outcome

        simulate_cells(scenario, left, jobs=self._jobs, dask=self._dask, done=keep)
        return [outcome for cell in cells if (outcome := found[cell]) is not None]

    def _name(self, cell: Cell) -> str:
        return identity(self._scopes[cell.strategy], cell)

    def _write(self, cell: Cell, outcome: Outcome) -> None:
        record = {
            **cell._asdict(),
            "scope": self._scopes[cell.strategy],
            "made_by": self._makers[cell.strategy],
            "outcome": dataclasses.asdict(outcome),
        }
        record["sha256"] = _digest(json.loads(json.dumps(record)))
        final = self.folder / _RUNS / f"{self._name(cell)}.json"
        unfinished = final.with_name(f".{final.name}.{uuid.uuid4().hex[:8]}")
        unfinished.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        unfinished.replace(final)


@contextlib.contextmanager
def writing(
    out: str | Path,
    scenario: Scenario,
    *,
    jobs: int | None = None,
    dask: str | None = None,
    replace: bool = False,
) -> Iterator[Kept]:
    """Write a result folder of a search: refused before any work, complete or absent after it.

    If the block fails before ``goodput.json`` is there, the runs are kept beside `out`; if it fails
    after that, the folder takes its place all the same.

    Runs that are there already, in `out` or from a search that was interrupted, are used again if
    they are whole and the same program made them; a warning is logged about others.

    Parameters
    ----------
    out : str or Path
        The folder.
    scenario : Scenario
        What is searched.
    jobs, dask : int, str, optional
        As in `executor.outcomes`.
    replace : bool
        Put these results in the place of another scenario's.

    Yields
    ------
    Kept
        What runs the cells; its folder takes `FILES`.

    Raises
    ------
    DataError
        If `out` cannot be written, holds something else, or results of another scenario.
    """
    out = Path(os.path.abspath(arguments.path("out", out, "Give the path of a folder.")))
    output.refuse_strangers(out, (*FILES, _RUNS))
    partial = out.with_name(f".{out.name}.partial")
    done = False
    try:
        found = [read_run(path) for place in (partial, out) for path in _files(place)]
        if not replace:
            _refuse_loss(out, scenario, found)
        (partial / _RUNS).mkdir(parents=True, exist_ok=True)
        kept = Kept(partial, scenario, _begin(partial, scenario, found), jobs=jobs, dask=dask)
        ended = False
        try:
            yield kept
            ended = True
        finally:
            if ended or (partial / FILES[0]).exists():
                output.put_in_place(out, partial)
                done = True
    except OSError as error:
        raise output.unwritable(out, error) from None
    finally:
        if done or not _files(partial):
            shutil.rmtree(partial, ignore_errors=True)


def _files(folder: Path) -> list[Path]:
    return sorted((folder / _RUNS).glob("[!.]*.json"))


def _refuse_loss(out: Path, scenario: Scenario, found: Sequence[Run]) -> None:
    """Refuse to put one scenario's results in the place of another's.

    The runs of a strategy may give way to those after a change of it, as long as other runs show
    that it is still the same search. What is damaged says nothing.
    """
    scopes = {scope_of(scenario, s.name) for s in scenario.strategies}
    names = {s.name for s in scenario.strategies}
    sound = [run for run in found if run.outcome is not None]
    lost = next((run.strategy for run in sound if run.strategy not in names), None)
    if lost is None and sound and not any(run.scope in scopes for run in sound):
        lost = sound[0].strategy
    if lost is None and not found and (out / FILES[0]).exists():
        lost = FILES[0]
    if lost is not None:
        raise DataError(
            f"{out}: holds results of another scenario that would be lost ({lost}). "
            "Give another folder with -o, or --replace to put these results in their place."
        )


def _makers(scenario: Scenario) -> dict[str, str]:
    """Return what would make the runs of each strategy now."""
    document = scenario.document
    return {s.name: recorded.made_by(document, s.name) for s in scenario.strategies}


def _begin(partial: Path, scenario: Scenario, found: Sequence[Run]) -> list[Run]:
    """Put the runs that can be used again into the folder, and leave no others in it."""
    makers = {scope_of(scenario, name): maker for name, maker in _makers(scenario).items()}
    sound: dict[str, Run] = {}
    faults: Counter[str] = Counter()
    for run in found:
        if run.outcome is None:
            faults["damaged"] += 1
        elif run.scope in makers and run.made_by != makers[run.scope]:
            faults["made by another version"] += 1
        elif run.scope in makers:
            sound.setdefault(run.path.name, run)
    for name in FILES:
        (partial / name).unlink(missing_ok=True)
    for path in (partial / _RUNS).iterdir():
        if path.name not in sound or sound[path.name].path != path:
            path.unlink()
    for name, run in sound.items():
        if run.path.parent.parent != partial:
            output.link(run.path, partial / _RUNS / name)
    for reason, count in faults.items():
        noun = "run is" if count == 1 else "runs are"
        _log.warning("%d recorded %s %s: run again", count, noun, reason)
    return list(sound.values())
