"""Recorded runs: recognised by what decides them, checked, used again.

A run is recorded as a file ``IDENTITY.json`` (`RecordedRuns`: small outcomes, for any study) or as
a folder of frames with a manifest (`runs.folder`, for comparisons). Both appear whole or not at
all and are never changed, so a process may be killed while it writes, and several may write to one
folder of recorded runs.
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
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple, TypeVar

import numpy as np

from simcluster.errors import DataError
from simcluster.runs import output
from simcluster.runs.cell import Cell, digest, identity, identity_in, made_by, program, scope_of
from simcluster.runs.result import FRAMES, SUMMARY_FRAMES
from simcluster.scenario import arguments
from simcluster.scenario.scenario import Scenario

T = TypeVar("T")

MANIFEST: Final = "cell.json"
"""File of a run's folder that says what the run is and what belongs to it."""
RUNS: Final = "runs"
"""Subfolder of a result folder with the runs that are recorded as files."""

Fault = Literal["made by another version", "damaged", "in another format"]

_log = logging.getLogger("simcluster")


class Label(NamedTuple):
    """What a run is that is recorded."""

    identity: str
    """Digest of all that decides the outcome, but the program."""
    made_by: str
    """The program (`runs.cell.made_by`)."""
    about: Mapping[str, Any]
    """What else is written beside the outcome: of a file at least ``strategy`` and ``scope`` (what
    decides all runs of the strategy), of a folder its ``name``."""


@dataclass(frozen=True, slots=True)
class Recorded:
    """A run found on disk."""

    path: Path
    """Its file, or the folder of its frames."""
    name: str
    """Of a file: the strategy; of a folder: strategy, rate and seed, as in the names of folders."""
    identity: str
    """As it was when the run was written; of a file the digest of its strategy (`scope_of`)."""
    values: Mapping[str, Any]
    """What was written; empty if that is damaged."""

    def fault(self, maker: str | None, fmt: str | None = None) -> Fault | None:
        """Return why the run cannot be used again; None if it can.

        Parameters
        ----------
        maker : str or None
            What would make the run now (`runs.cell.made_by`); None for this program, whatever code
            from elsewhere it may use.
        fmt : str or None
            Wanted format of its frames; None where it is a file.
        """
        files = self.values.get("files", {} if fmt is None else None)
        if not self.values or not isinstance(files, dict):
            return "damaged"
        made = str(self.values.get("made_by"))
        if not made.startswith(program()) if maker is None else made != maker:
            return "made by another version"
        if self.values.get("format") != fmt:
            return "in another format"
        wholes = [{f"{n}.{fmt}" for n in (*f, "sweep")} for f in (FRAMES, SUMMARY_FRAMES)]
        whole = fmt is None or set(files) in wholes
        try:
            same = whole and all(digest(self.path / name) == known for name, known in files.items())
        except (OSError, ValueError):  # also a name that no file can have
            same = False
        return None if same else "damaged"

    def put(self, final: Path) -> None:
        """Give it the name `final` too, by hard links where the file system has them."""
        if self.path.is_file():
            output.link(self.path, final)
            return
        unfinished = scratch(final)
        for name in (*self.values["files"], MANIFEST):
            output.link(self.path / name, unfinished / name)
        publish(unfinished, final)


def read_file(path: Path) -> Recorded:
    """Return the run in a file, without values if the file is not as it was written."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        known = values.pop("sha256")
        if known != _digest(values):
            raise ValueError(known)
        return Recorded(path, str(values["strategy"]), str(values["scope"]), values)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return Recorded(path, "", "", {})


def _digest(values: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


# Runs of frames ---------------------------------------------------------------------------------


def recorded(folder: Path) -> list[Recorded]:
    """Return the runs in a result folder, finished or not: one at its top, or those in it."""
    places = [folder] if (folder / MANIFEST).is_file() else []
    places += sorted(p for p in (folder / "cells").glob("[!.]*") if p.is_dir())
    return [_read_folder(place) for place in places]


def _read_folder(folder: Path) -> Recorded:
    name, _, suffix = folder.name.rpartition("-")
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        return Recorded(folder, str(manifest["name"]), str(manifest["identity"]), manifest)
    except (OSError, ValueError, KeyError, TypeError):
        return Recorded(folder, name, suffix, {})


def write_manifest(folder: Path, label: Label, fmt: str) -> None:
    """Write the manifest of the run whose files are in `folder`."""
    files = {p.name: digest(p) for p in sorted(folder.iterdir()) if p.name != MANIFEST}
    manifest = {
        **label.about,
        "identity": label.identity,
        "made_by": label.made_by,
        "format": fmt,
        "files": files,
    }
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")


def scratch(final: Path) -> Path:
    """Return a new hidden folder beside `final`, for a run that is being written.

    Its name is taken by nobody else, not even by a process that outlives its killed parent.
    """
    folder = final.with_name(f".{final.name}.{uuid.uuid4().hex[:8]}")
    folder.mkdir()
    return folder


def publish(unfinished: Path, final: Path) -> None:
    """Give a finished folder its name; if it is there already, that one stays."""
    try:
        unfinished.rename(final)
    except OSError:
        if not final.is_dir():
            raise
        shutil.rmtree(unfinished)


# Small outcomes ---------------------------------------------------------------------------------


class RecordedRuns:
    """A folder of small outcomes that a study opens.

    Parameters
    ----------
    folder : Path
        The folder; it is made when the first outcome is recorded.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._scenario: Scenario | None = None
        self._scopes: dict[str, tuple[str, str]] = {}

    def __iter__(self) -> Iterator[Recorded]:
        """Give what is recorded, damaged files included."""
        return map(read_file, sorted(self.folder.glob("[!.]*.json")))

    def label(self, scenario: Scenario, cell: Cell, kind: str = "") -> Label:
        """Return the label of a run of `scenario`; `kind` as in `runs.cell.identity`."""
        if scenario is not self._scenario:
            self._scenario, self._scopes = scenario, {}
        name = cell.strategy
        if name not in self._scopes:
            self._scopes[name] = scope_of(scenario, name), made_by(scenario, name)
        scope, maker = self._scopes[name]
        if cell.num_requests is None:
            own = identity(scenario, cell, kind)
        else:
            own = identity_in(scope, cell, kind)
        about = {**cell._asdict(), "scope": scope, **({"kind": kind} if kind else {})}
        return Label(own, maker, about)

    def read(self, label: Label, made: Callable[..., T]) -> T | None:
        """Return a recorded outcome, made by `made`; None if there is none that can be used."""
        run = read_file(self._path(label))
        if run.fault(label.made_by):
            return None
        values = run.values["outcome"]
        return made(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})

    def keep(self, label: Label, outcome: T) -> T:
        """Record an outcome, a dataclass or a mapping, and return it."""
        plain: Any = outcome
        if dataclasses.is_dataclass(outcome) and not isinstance(outcome, type):
            plain = dataclasses.asdict(outcome)
        written = {**label.about, "made_by": label.made_by, "outcome": plain}
        values = json.loads(json.dumps(written, default=np.ndarray.tolist))
        text = json.dumps({**values, "sha256": _digest(values)}, indent=1)
        output.write_whole(self._path(label), text + "\n")
        return outcome

    def _path(self, label: Label) -> Path:
        return self.folder / f"{label.identity}.json"


@contextlib.contextmanager
def writing(
    out: str | Path | None,
    files: Sequence[str],
    scenario: Scenario | None = None,
    *,
    variants: Sequence[Scenario] = (),
    replace: bool = False,
) -> Iterator[tuple[Path, RecordedRuns] | tuple[None, None]]:
    """Write the result folder of a study: refused before any work, complete or absent after it.

    As long as the study is under way its folder is a hidden sibling of `out`. Whatever ends the
    study, its recorded runs stay there, and the next one into the same folder resumes from them.
    Once the first of `files` is written the folder takes its place, even if the block then fails.

    Runs that are there already, in `out` or from a study that was interrupted, are used again if
    they are whole and the same program made them; a warning is logged about others.

    Parameters
    ----------
    out : str, Path or None
        The folder; None for none.
    files : sequence of str
        Names of the results beside the runs.
    scenario : Scenario, optional
        Whose strategies alone may have runs in the folder: results of another one are refused, and
        runs of a strategy that has changed give way. Without it all runs stay.
    variants : sequence of Scenario
        Others whose runs belong to the same study.
    replace : bool
        Put these results in the place of another scenario's.

    Yields
    ------
    Path or None
        Where to write `files`.
    RecordedRuns or None
        Where to record runs.

    Raises
    ------
    DataError
        If `out` cannot be written, holds something else, or results of another scenario, or if
        another process is writing it.
    """
    if out is None:
        yield None, None
        return
    out = Path(os.path.abspath(arguments.path("out", out, "Give the path of a folder.")))
    output.refuse_strangers(out, (*files, RUNS))
    with output.partial(out, RUNS) as partial:
        runs = RecordedRuns(partial / RUNS)
        found = [*runs, *RecordedRuns(out / RUNS)]
        makers = None
        if scenario is not None:
            studied = [(one, s.name) for one in (scenario, *variants) for s in one.strategies]
            scopes = {scope_of(one, name): (one, name) for one, name in studied}
            names = {scope: name for scope, (_, name) in scopes.items()}
            makers = {scope: made_by(*own) for scope, own in scopes.items()}
            if not replace:
                refuse_loss(out, found, names, files[0])
        runs.folder.mkdir(exist_ok=True)
        take_over(found, runs.folder, lambda run: run.path.name, makers)
        for name in files:
            (partial / name).unlink(missing_ok=True)
        ended = False
        try:
            yield partial, runs
            ended = True
        finally:
            if ended or (partial / files[0]).exists():
                with contextlib.suppress(OSError):  # there are runs in it
                    runs.folder.rmdir()
                output.put_in_place(out, partial)


# What an earlier study has left -----------------------------------------------------------------


def refuse_loss(
    out: Path, found: Sequence[Recorded], names: Mapping[str, str], result: str = ""
) -> None:
    """Refuse to put one scenario's results in the place of another's.

    A run may give way to that of the same name after a change of the scenario, as long as other
    runs show that it is still the same study. What is damaged says nothing.

    Parameters
    ----------
    out : Path
        Where the results are to go.
    found : sequence of Recorded
        What is there.
    names : mapping of str to str
        Name of each identity that the study wants.
    result : str
        A file in `out` that must not be lost where no runs are there.

    Raises
    ------
    DataError
        If results would be lost.
    """
    lost = [run.name for run in found if run.name and run.name not in names.values()]
    if not lost and not any(run.identity in names for run in found):
        lost = [run.name for run in found if run.name]
    what = f"{len(lost)} run{'s' if lost[1:] else ''}"
    if not found and result and (out / result).exists():
        lost, what = [result], "results"
    if lost:
        raise DataError(
            f"{out}: holds {what} of another scenario that would be lost ({min(lost)}). "
            "Give another folder with -o, or --replace to put these results in their place."
        )


def take_over(
    found: Sequence[Recorded],
    folder: Path,
    name_of: Callable[[Recorded], str | None],
    makers: Mapping[str, str] | None,
    fmt: str | None = None,
) -> set[Path]:
    """Put the runs that can be used again into `folder`, and leave nothing else in it.

    A warning is logged about those that are wanted and cannot be used.

    Parameters
    ----------
    found : sequence of Recorded
        What is there, in `folder` or elsewhere.
    folder : Path
        Where they go.
    name_of : callable
        Name of a run in `folder`; None if it is not wanted.
    makers : mapping of str to str, or None
        What would make the run of each wanted identity now; None if all are wanted.
    fmt : str or None
        As in `Recorded.fault`.

    Returns
    -------
    set of Path
        Where sound runs were found.
    """
    sound: dict[str, Recorded] = {}
    faults: dict[str, Fault] = {}
    places: set[Path] = set()
    for run in found:
        name = name_of(run)
        known = makers is None or run.identity in makers or not run.values
        if name is None or not known:
            continue
        fault = run.fault(None if makers is None else makers.get(run.identity), fmt)
        if fault is not None:
            faults[name] = fault
            continue
        sound.setdefault(name, run)
        places.add(run.path)
    for name, run in sound.items():
        if folder / name not in places:
            output.remove(folder / name)
            run.put(folder / name)
    for path in sorted(folder.iterdir()):
        if path.name not in sound:
            output.remove(path)
    for fault, count in Counter(f for name, f in faults.items() if name not in sound).items():
        noun = "run is" if count == 1 else "runs are"
        _log.warning("%d recorded %s %s: run again", count, noun, fault)
    return places
