"""Runs on disk, named by what they are made of: recognised, checked, used again.

A run is described by an identity, a digest of all that decides its outcome: the parts of the
scenario that matter to it, its rate and seed, and the contents of the files it reads. Beside its
frames lies a manifest with the identity, what made it, and a digest of every file.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import json
import os
import shutil
import sys
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

from simcluster._version import __version__
from simcluster.config import Environment
from simcluster.registry import Registry
from simcluster.roofline import STEP_TIMES
from simcluster.routing import ROUTERS
from simcluster.runs.output import link
from simcluster.scenario.scenario import Scenario
from simcluster.sched import QUEUES, SCHEDULERS
from simcluster.strategies import STRATEGIES
from simcluster.workload import ARRIVALS, LENGTHS

MANIFEST: Final = "cell.json"
"""File of a run's folder that says what the run is and what belongs to it."""

_ID_LEN: Final = 16
"""Hexadecimal digits of an identity: among a million runs two agree with odds of 1 in 10^7."""

Fault = Literal["made by another version", "damaged", "in another format"]


class Cell(NamedTuple):
    """One run of a comparison.

    Attributes
    ----------
    strategy : str
        Its name in the scenario.
    rate_rps : float or None
        Offered rate (requests/s); None where the workload has its own.
    seed : int
        Seed of the run.
    """

    strategy: str
    rate_rps: float | None
    seed: int


def identity(scenario: Scenario, cell: Cell) -> str:
    """Return a digest of all that decides the outcome of one run, but the program.

    Entries of the catalogue count by what they hold, whatever file they come from, and other
    entries do not count; files count by their contents, wherever they lie. Prices, the other
    strategies, rates and seeds, and the wanted attainment are not in it: the run is the same
    whatever they are.

    Parameters
    ----------
    scenario : Scenario
        What is simulated.
    cell : Cell
        The run.

    Raises
    ------
    OSError
        If a file that the scenario names cannot be read.
    """
    workload = scenario.workload
    if cell.rate_rps is not None:
        workload = replace(workload, rate_rps=None)
    environment = without_prices(scenario.environment)
    parts = [
        replace(environment, slo=replace(environment.slo, attainment=1.0)),
        workload,
        scenario.quality,
        replace(scenario.run, seeds=(cell.seed,)),
        scenario.strategy(cell.strategy),
        cell.rate_rps,
    ]
    return digest_of(parts)[:_ID_LEN]


def without_prices(environment: Environment) -> Environment:
    """Return `environment` with machines that cost nothing that is known."""
    first, *others = (
        replace(c, gpu=replace(c.gpu, prices=()), price_per_gpu_hour=None, currency="")
        for c in environment.clusters
    )
    return replace(environment, cluster=first, extra_clusters=tuple(others))


def digest_of(value: object) -> str:
    """Return the SHA-256 of settings and plain values, of files by what is in them."""
    text = json.dumps(_with_contents(value), sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def _with_contents(value: Any) -> Any:
    """Return plain values, with the digest of its contents in place of the path of a file."""
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: _with_contents(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _with_contents(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_with_contents(inner) for inner in value]
    return digest(Path(value)) if _is_file(value) else value


def inputs(document: Mapping[str, Any]) -> dict[str, str]:
    """Return the SHA-256 of the files that a scenario reads, by path."""
    return {path: digest(Path(path)) for path in _paths(dict(document))}


def _paths(value: Any) -> Iterator[str]:
    """Absolute paths of existing files in `value`."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for inner in value:
            yield from _paths(inner)
    elif _is_file(value):
        yield value


def _is_file(value: object) -> bool:
    return isinstance(value, str) and os.path.isabs(value) and os.path.isfile(value)


def digest(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@functools.cache
def program() -> str:
    """Return the version of simcluster and a digest of its code and catalogue.

    A run made by other code is another run, also while a version is being worked on.
    """
    root = Path(__file__).parents[1]
    total = hashlib.sha256()
    for path in sorted(p for p in root.rglob("*") if p.suffix in (".py", ".toml")):
        total.update(f"{path.relative_to(root).as_posix()}\0".encode())
        total.update(path.read_bytes())
    return f"{__version__}+{total.hexdigest()[:12]}"


_REGISTRIES: Final[tuple[Registry[Any], ...]] = (
    STRATEGIES,
    SCHEDULERS,
    QUEUES,
    ROUTERS,
    ARRIVALS,
    LENGTHS,
    STEP_TIMES,
)


def made_by(document: Mapping[str, Any], strategy: str) -> str:
    """Return `program`, with a digest of code from elsewhere that a run may use.

    Parameters
    ----------
    document : mapping
        The scenario with all defaults filled in.
    strategy : str
        Name of the run's strategy. Its code counts if it is not ours, and so does the code of every
        scheduler, queue, router, arrival process, length distribution and source of step times
        that the scenario names.
    """
    own = next(s for s in document["strategy"] if s["name"] == strategy)
    words = set(_words([own, document["workload"], document["engine"]]))
    sources = {
        _source(registry[name])
        for registry in _REGISTRIES
        for name in registry
        if name in words and _root(registry[name]) != _root(made_by)
    }
    if not sources:
        return program()
    return f"{program()}+{hashlib.sha256(''.join(sorted(sources)).encode()).hexdigest()[:12]}"


def _words(value: Any) -> Iterator[str]:
    """All texts in `value`, a name of a registry among them."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for inner in value:
            yield from _words(inner)
    elif isinstance(value, str):
        yield value


def _root(implementation: Any) -> str:
    """Name of the package that an implementation comes from."""
    return str(getattr(implementation, "__module__", "")).split(".")[0]


def _source(implementation: Any) -> str:
    """Digest of the package that an implementation comes from, or of its file."""
    package = sys.modules.get(_root(implementation))
    if package is not None and package.__file__ and hasattr(package, "__path__"):
        files = sorted(Path(package.__file__).parent.rglob("*.py"))
        return "".join(map(digest, files))
    has_code = inspect.isclass(implementation) or inspect.isroutine(implementation)
    try:
        return digest(Path(inspect.getfile(implementation if has_code else type(implementation))))
    except (OSError, TypeError):  # defined where no file is, as in a notebook
        return repr(implementation)


@dataclass(frozen=True, slots=True)
class Recorded:
    """A run found on disk.

    Attributes
    ----------
    folder : Path
        Where its frames are.
    name : str
        Strategy, rate and seed, as in the names of folders.
    identity : str
        As it was when the run was written.
    manifest : dict
        The rest of what was written beside it; empty if that cannot be read.
    """

    folder: Path
    name: str
    identity: str
    manifest: Mapping[str, Any]

    def fault(self, maker: str, fmt: str) -> Fault | None:
        """Return why the run cannot be used again; None if it can.

        Parameters
        ----------
        maker : str
            What would make the run now (`made_by`).
        fmt : str
            Wanted format of its frames.
        """
        files = self.manifest.get("files")
        if not isinstance(files, dict) or not files:
            return "damaged"
        if self.manifest.get("made_by") != maker:
            return "made by another version"
        if self.manifest.get("format") != fmt:
            return "in another format"
        try:
            same = all(digest(self.folder / name) == known for name, known in files.items())
        except OSError:
            same = False
        return None if same else "damaged"


def recorded(folder: Path) -> list[Recorded]:
    """Return the runs in a result folder, finished or not: one at its top, or those in it."""
    places = [folder] if (folder / MANIFEST).is_file() else []
    places += sorted(p for p in (folder / "cells").glob("[!.]*") if p.is_dir())
    return [_recorded(place) for place in places]


def _recorded(folder: Path) -> Recorded:
    name, _, suffix = folder.name.rpartition("-")
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        return Recorded(folder, str(manifest["name"]), str(manifest["identity"]), manifest)
    except (OSError, ValueError, KeyError, TypeError):
        return Recorded(folder, name, suffix, {})


def write_manifest(folder: Path, *, name: str, identity: str, maker: str, fmt: str) -> None:
    """Write the manifest of the run whose files are in `folder`."""
    files = {p.name: digest(p) for p in sorted(folder.iterdir()) if p.name != MANIFEST}
    manifest = {
        "name": name,
        "identity": identity,
        "made_by": maker,
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


def adopt(found: Recorded, final: Path) -> None:
    """Put a recorded run under the name `final`, by hard links where the file system has them."""
    unfinished = scratch(final)
    for name in (*found.manifest["files"], MANIFEST):
        link(found.folder / name, unfinished / name)
    publish(unfinished, final)
