"""A cell: one run of a study, and the digests that say what it is and what made it."""

from __future__ import annotations

import functools
import hashlib
import inspect
import json
import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Final, NamedTuple

from simcluster._version import __version__
from simcluster.config import Environment
from simcluster.registry import Registry
from simcluster.roofline import STEP_TIMES
from simcluster.routing import ROUTERS
from simcluster.scenario.scenario import Scenario
from simcluster.sched import QUEUES, SCHEDULERS
from simcluster.strategies import STRATEGIES
from simcluster.workload import ARRIVALS, LENGTHS

_ID_LEN: Final = 16
"""Hexadecimal digits of an identity: among a million runs two agree with odds of 1 in 10^7."""


class Cell(NamedTuple):
    """One run: all that its outcome depends on, beside the scenario."""

    strategy: str
    """Its name in the scenario."""
    rate_rps: float | None
    """Offered rate (requests/s); None where the workload has its own."""
    seed: int
    """Seed of the run."""
    num_requests: int | None = None
    """Requests of the run; None for as many as the scenario says."""


def identity(scenario: Scenario, cell: Cell, kind: str = "") -> str:
    """Return a digest of all that decides the outcome of one run, but the program.

    Entries of the catalogue count by what they hold, whatever file they come from, and other
    entries do not count; files count by their contents, wherever they lie. Prices, the other
    strategies, rates and seeds, and the wanted shares are not in it: the run is the same whatever
    they are.

    Parameters
    ----------
    scenario : Scenario
        What is simulated.
    cell : Cell
        The run.
    kind : str
        What is recorded of the run, where two studies record different things; empty for the
        frames of a comparison and for what a goodput is made of.

    Raises
    ------
    OSError
        If a file that the scenario names cannot be read.
    """
    if cell.num_requests is not None:
        return identity_in(scope_of(scenario, cell.strategy), cell, kind)
    workload = scenario.workload
    if cell.rate_rps is not None:
        workload = replace(workload, rate_rps=None)
    environment = without_prices(scenario.environment)
    parts = [
        replace(environment, slo=replace(environment.slo, attainment=1.0, percentiles=None)),
        workload,
        scenario.quality,
        replace(scenario.run, seeds=(cell.seed,)),
        scenario.strategy(cell.strategy),
        cell.rate_rps,
    ]
    own = digest_of(parts)[:_ID_LEN]
    return identity_in(own, cell, kind) if kind else own


def scope_of(scenario: Scenario, strategy: str) -> str:
    """Return a digest of all that decides the runs of a strategy but rate, seed and length."""
    workload = replace(scenario.workload, num_requests=None, duration_s=None)
    return identity(replace(scenario, workload=workload), Cell(strategy, 0.0, 0))


def identity_in(scope: str, cell: Cell, kind: str = "") -> str:
    """Return the `identity` of a run of stated length whose `scope_of` is known."""
    words = [scope, repr(float(cell.rate_rps or 0.0)), str(int(cell.seed))]
    words += [str(int(cell.num_requests or 0)), *([kind] if kind else [])]
    return hashlib.sha256(" ".join(words).encode()).hexdigest()[:_ID_LEN]


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


def _texts(value: Any) -> Iterator[str]:
    """All texts in settings and plain values, keys apart."""
    if is_dataclass(value) and not isinstance(value, type):
        value = [getattr(value, f.name) for f in fields(value)]
    elif isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _texts(inner)
    else:  # what a script registers need not be a dataclass
        yield from _texts(getattr(value, "kind", ()))


def inputs(document: Mapping[str, Any]) -> dict[str, str]:
    """Return the SHA-256 of the files that a scenario reads, by path."""
    return {path: digest(Path(path)) for path in _texts(document) if _is_file(path)}


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


def made_by(scenario: Scenario, strategy: str) -> str:
    """Return `program`, with a digest of code from elsewhere that a run may use.

    Parameters
    ----------
    scenario : Scenario
        What is simulated.
    strategy : str
        Name of the run's strategy. Its code counts if it is not ours, and so does the code of every
        scheduler, queue, router, arrival process, length distribution and source of step times
        that the scenario names.
    """
    own = scenario.strategy(strategy)
    words = set(_texts([own, own.kind, scenario.workload, scenario.environment.engine]))
    sources = {
        _source(registry[name])
        for registry in _REGISTRIES
        for name in registry
        if name in words and _root(registry[name]) != _root(made_by)
    }
    if not sources:
        return program()
    return f"{program()}+{hashlib.sha256(''.join(sorted(sources)).encode()).hexdigest()[:12]}"


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
