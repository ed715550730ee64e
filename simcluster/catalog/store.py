"""The catalogue as a value: the packaged entries and those of a user's files, found by name.

Names match without regard to case, spaces, dashes, underscores and slashes; entries carry aliases
for their short forms. What matches nothing or several is refused with the names that would do.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

from simcluster.catalog import build, model_entry
from simcluster.catalog.layers import ModelSpec
from simcluster.catalog.parsed import parsed
from simcluster.catalog.specs import (
    EngineProfile,
    GPUSpec,
    LengthTable,
    LinkSpec,
    NodeShape,
    Price,
    QualityCounts,
)
from simcluster.catalog.tables import TABLES, Row, check
from simcluster.errors import ConfigError, DataError, nearest, same_thing

KINDS: Final = ("gpu", "model", "link", "node", "engine", "lengths", "quality")
"""What the catalogue holds by name. Prices belong to GPUs; `listing.search` lists them."""

FILES: Final = {
    "gpu": "gpus.toml",
    "kernels": "kernels.toml",
    "experts": "experts.toml",
    "price": "prices.toml",
    "model": "models.toml",
    "link": "links.toml",
    "node": "nodes.toml",
    "engine": "engines.toml",
    "lengths": "lengths.toml",
    "quality": "quality.toml",
}
"""Packaged file of each table."""

_REFERENCES: Final = {
    "gpu": {"fabric": "link", "pcie": "link", "kernels": "kernels", "older_kernels": "kernels"},
    "kernels": {"experts": "experts"},
    "price": {"gpu": "gpu"},
    "node": {"gpu": "gpu", "fabric": "link", "network": "link"},
}
"""Keys whose value names an entry of another table, or several."""

_ITS_OWN: Final = ("name", "aliases", "source", "num_params", "kv_bytes_per_token")
"""Keys that ``like`` never gives to another entry; the last two are counted from its shape."""


@dataclass(frozen=True, slots=True)
class Table:
    """Entries by name, and the names by everything they are called."""

    rows: dict[str, Row]
    """Entry by name."""
    index: dict[str, str]
    """Name by its folded name and folded aliases."""


def fold(name: str) -> str:
    """Return `name` as names are compared.

    >>> fold("A100-80GB SXM") == fold("a100 80gb_sxm")
    True
    """
    return "".join(c for c in name.lower() if c not in " -_/")


@cache
def packaged(table: str) -> tuple[Row, ...]:
    """Return the entries of `table` that come with the package."""
    return tuple(parsed(Path(__file__).with_name(FILES[table]))[table])


@cache
def packaged_table(table: str) -> Table:
    """Return the entries of `packaged` by name."""
    return _by_name(packaged(table))


def _by_name(rows: Iterable[Row]) -> Table:
    """Return entries by name; a later one replaces an earlier one of equal name."""
    last = {fold(str(row["name"])): row for row in rows}
    named = {str(row["name"]): row for row in last.values()}
    index = {fold(alias): name for name, row in named.items() for alias in texts(row, "aliases")}
    index.update({fold(name): name for name in named})  # a name wins over another's alias
    return Table(named, index)


def texts(row: Row, key: str) -> list[str]:
    """Return the texts under `key` of an entry: several, one, or none."""
    found = row.get(key, [])
    return [str(text) for text in found] if isinstance(found, list) else [str(found)]


@dataclass(frozen=True, slots=True)
class Catalog:
    """The packaged entries and those of a user's files.

    A value: `with_file` returns another catalogue and leaves this one as it is. ``Catalog()`` has
    the packaged entries alone. A pickled catalogue holds the added entries alone.
    """

    added: tuple[tuple[str, Row], ...] = ()
    """Table and entry of what files have added, in their order. An entry replaces a packaged or
    earlier one of equal name; a price stands beside the others."""

    def with_file(self, path: Path | str) -> Catalog:
        """Return this catalogue with the entries of a TOML file.

        The file has the tables of the packaged files (``[[gpu]]``, ``[[price]]``, ``[[kernels]]``,
        ``[[experts]]``, ``[[model]]``, ``[[link]]``, ``[[node]]``, ``[[engine]]``, ``[[lengths]]``,
        ``[[quality]]``) and their keys. ``like = "NAME"`` takes from another entry every key that
        is not given, but never its name, aliases and source.

        Parameters
        ----------
        path : path
            The file.

        Raises
        ------
        DataError
            If the file cannot be read or is not TOML.
        ConfigError
            If an entry has an unknown key, lacks one, has a wrong type, names another entry that
            does not exist, or has the name of another entry of the file.
        """
        path = Path(path)
        grown, own = self, []
        for table, rows in _tables_of(path).items():
            for i, row in enumerate(rows):
                where = f"{path.name}: {table}[{i}]"
                complete = grown._completed(table, row, where)
                own.append((table, complete, where))
                grown = Catalog((*grown.added, (table, complete)))
        for table, row, where in own:
            for key, other in _REFERENCES.get(table, {}).items():
                for name in texts(row, key):
                    grown.find(other, name, key=f"{where}.{key}")
        return grown

    def _completed(self, table: str, row: Row, where: str) -> Row:
        """Return an entry of a file with the keys of the one it is ``like``, checked."""
        if "like" in row and "like" in TABLES[table]:
            base = self.find(table, str(row["like"]), key=f"{where}.like")
            row = {key: base[key] for key in base if _is_inherited(key, row)} | dict(row)
        check(table, row, where=where)
        return row

    def table(self, name: str) -> Table:
        """Return the named entries of one table."""
        added = [row for table, row in self.added if table == name]
        return _by_name((*packaged(name), *added)) if added else packaged_table(name)

    def find(self, table: str, name: str, *, key: str) -> Row:
        """Return the entry that `name` means.

        Parameters
        ----------
        table : str
            Where to look.
        name : str
            A name or alias, in any spelling.
        key : str
            Key of the scenario file that holds `name`, for messages.

        Raises
        ------
        ConfigError
            If `name` begins several names, or none; lists the candidates.
        """
        known = self.table(table)
        found = known.index.get(fold(name))
        if found is not None:
            return known.rows[found]
        candidates = [n for n in known.rows if _begins(n, fold(name))] if fold(name) else []
        if len(candidates) == 1 and not _is_whole_words(candidates[0], fold(name)):
            candidates = []  # L40S is no L40
        if candidates:
            if len(candidates) == 1:
                rule, remedy = "is not a full name of the catalogue", f"Write {candidates[0]!r}."
            else:
                shown = ", ".join(map(repr, candidates[:12])) + ", ..." * (len(candidates) > 12)
                rule = f"begins {len(candidates)} names of the catalogue"
                remedy = f"Write one of {shown}."
            raise ConfigError(key, name, rule, remedy)
        slip = same_thing(name, known.rows) or f"`simcluster catalog --kind {table}` lists what is."
        remedy = f"{slip} Or add it in a catalogue file of your own."
        raise ConfigError(key, name, f"no such {table} in the catalogue", remedy)

    def names(self, kind: str) -> list[str]:
        """Return the names of one kind of `KINDS`, sorted.

        Raises
        ------
        ConfigError
            If there is no such kind.
        """
        if kind not in KINDS:
            raise ConfigError("kind", kind, "the catalogue has no such kind", nearest(kind, KINDS))
        return sorted(self.table(kind).rows)

    def gpu(self, name: str, key: str = "cluster.gpu") -> GPUSpec:
        """Return the GPU called `name`, with kernel constants and prices.

        Parameters
        ----------
        name : str
            Full name or short form: ``"A100"`` is the 80 GB SXM part, ``"4090"`` the RTX 4090.
        key : str
            Key of the scenario file that holds `name`, for messages.

        Raises
        ------
        ConfigError
            If the name is unknown or means several GPUs; the message lists them.
        """
        row = self.find("gpu", name, key=key)
        kernels, *older = (
            self._kernels(each, key=f"gpu {row['name']}: kernels")
            for each in (str(row["kernels"]), *texts(row, "older_kernels"))
        )
        return build.gpu(row, kernels, self.prices(str(row["name"])), older)

    def _kernels(self, name: str, key: str) -> tuple[Row, list[Row]]:
        """Return constants of kernels, and the entries of their kernels for experts."""
        row = self.find("kernels", name, key=key)
        where = f"kernels {row['name']}: experts"
        return row, [self.find("experts", each, key=where) for each in texts(row, "experts")]

    def prices(self, gpu: str) -> list[Row]:
        """Return the prices of the GPU called `gpu`, its name in full."""
        index = self.table("gpu").index
        rows = (*packaged("price"), *(row for table, row in self.added if table == "price"))
        return [row for row in rows if index.get(fold(str(row["gpu"]))) == gpu]

    def model(self, name: str, key: str = "model.name") -> ModelSpec:
        """Return the model called `name`; parameters and errors as in `gpu`."""
        return model_entry.model(self.find("model", name, key=key))

    def link(self, name: str, key: str = "cluster.fabric") -> LinkSpec:
        """Return the link called `name`; parameters and errors as in `gpu`."""
        return build.link(self.find("link", name, key=key))

    def node(self, name: str, key: str = "cluster.node") -> NodeShape:
        """Return the server called `name`; parameters and errors as in `gpu`."""
        return build.node(self.find("node", name, key=key))

    def engine(self, name: str, key: str = "engine.name") -> EngineProfile:
        """Return the engine profile called `name`; parameters and errors as in `gpu`."""
        return build.engine(self.find("engine", name, key=key))

    def lengths(self, name: str, key: str = "workload.lengths") -> LengthTable:
        """Return the length table called `name`; parameters and errors as in `gpu`."""
        return build.lengths(self.find("lengths", name, key=key))

    def quality(self, name: str, key: str = "quality.benchmark") -> QualityCounts:
        """Return the counts called `name`; parameters and errors as in `gpu`."""
        return build.quality(self.find("quality", name, key=key))


PACKAGED: Final = Catalog()
"""The packaged entries alone."""


def default_price(gpu: GPUSpec) -> Price | None:
    """Return the lowest dated on-demand price in US dollars; None where there is none.

    Community, serverless, reserved and list prices do not count, nor do other currencies: offers
    that a planner cannot have for sure, now, in the same money, are not comparable.
    """
    prices = [
        p for p in gpu.prices if p.tier == "on-demand" and p.currency == "USD" and p.date != ""
    ]
    return min(prices, key=lambda p: (p.per_gpu_hour, p.provider), default=None)


def _begins(name: str, prefix: str) -> bool:
    """Whether `prefix` begins the folded `name`, from its start or from a later word."""
    words = _words(name)
    return any("".join(words[i:]).startswith(prefix) for i in range(len(words)))


def _is_whole_words(name: str, part: str) -> bool:
    """Whether `part` is some words of `name` and not a part of one, which may be another thing."""
    words = _words(name)
    runs = ("".join(words[i:j]) for i in range(len(words)) for j in range(i + 1, len(words) + 1))
    return part in runs


def _words(name: str) -> list[str]:
    return [fold(word) for word in re.split(r"[-_ (]", name)]


def _is_inherited(key: str, row: Row) -> bool:
    """Whether `row` takes `key` from the entry it is like: not what would contradict it."""
    if key in _ITS_OWN or (key == "memory_mib" and "memory_gb" in row):
        return False
    return key.removeprefix("large_gpu_") not in row  # a limit given outright is for any GPU


def _tables_of(path: Path) -> dict[str, list[Row]]:
    """Return the entries of a file by table, not yet checked; refuse what is no list of entries."""
    try:
        document = tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: is not TOML ({error})") from None
    for table, rows in document.items():
        key = f"{path.name}: {table}"
        if table not in TABLES:
            rule = "the catalogue has no such table"
            raise ConfigError(key, table, rule, nearest(table, TABLES))
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise ConfigError(key, type(rows).__name__, "must be a list", f"Write [[{table}]].")
        first: dict[str, int] = {}
        for i, row in enumerate(rows):
            if "name" in row and first.setdefault(fold(str(row["name"])), i) != i:
                rule = f"is also the name of {table}[{first[fold(str(row['name']))]}]"
                raise ConfigError(f"{key}[{i}].name", row["name"], rule, "Rename one of them.")
    return document
