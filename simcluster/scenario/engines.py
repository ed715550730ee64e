"""The engine of a scenario: a profile of the catalogue and what ``[engine]`` changes of it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from simcluster.catalog import Catalog
from simcluster.catalog.specs import EngineProfile
from simcluster.catalog.tables import Row
from simcluster.errors import ConfigError, nearest
from simcluster.scenario.tables import EngineTable
from simcluster.sched import SCHEDULERS


def engine_of(table: EngineTable, catalog: Catalog) -> EngineProfile:
    """Return the profile that `table` names, with its numbers in the place of the profile's.

    Raises
    ------
    ConfigError
        If there is no such profile, or no GPU has kernels of the generation that is named.
    """
    profile = catalog.engine(table.profile, key="engine.profile")
    given = _overridden(table)
    _check_generation("engine.kernel_generation", given.get("kernel_generation", ""), catalog)
    for name in ("max_num_seqs", "chunk_size"):
        if name in given:  # for any GPU
            given.setdefault(f"large_gpu_{name}", None)
    return dataclasses.replace(profile, **given)


def _overridden(table: EngineTable) -> dict[str, Any]:
    """Return the numbers of the profile that the table gives itself."""
    given = dataclasses.asdict(table)
    return {
        f.name: given[f.name]
        for f in dataclasses.fields(EngineProfile)
        if given.get(f.name) is not None
    }


def with_file(catalog: Catalog, path: Path | str) -> Catalog:
    """Return `catalog` with the entries of a file, whose engines name what there is.

    Raises
    ------
    ConfigError, DataError
        As `Catalog.with_file`; also if an engine names a scheduler or a generation of kernels that
        does not exist.
    """
    grown = catalog.with_file(path)
    engines = [row for table, row in grown.added[len(catalog.added) :] if table == "engine"]
    for number, row in enumerate(engines):
        _check_engine(f"{Path(path).name}: engine[{number}]", row, grown)
    return grown


def _check_engine(where: str, row: Row, catalog: Catalog) -> None:
    scheduler = str(row.get("scheduler", "prefill-priority"))
    if scheduler not in SCHEDULERS:
        rule = "no such scheduler"
        raise ConfigError(f"{where}.scheduler", scheduler, rule, nearest(scheduler, SCHEDULERS))
    _check_generation(f"{where}.kernel_generation", str(row.get("kernel_generation", "")), catalog)


def _check_generation(key: str, name: str, catalog: Catalog) -> None:
    """Refuse a generation of kernels of which no GPU of the catalogue has constants."""
    known = {str(row.get("generation", "")) for row in catalog.table("kernels").rows.values()}
    if name and name not in known:
        rule = "no GPU of the catalogue has kernels of this generation"
        remedy = f"{nearest(name, sorted(known - {''}))} Or leave it out for the current ones."
        raise ConfigError(key, name, rule, remedy)
