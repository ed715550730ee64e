"""Entries of the catalogue: read when first asked for, kept, found by name.

Names match without regard to case, spaces, dashes, underscores and slashes; entries carry aliases
for their short forms. What matches nothing or several is refused with the names that would do.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Final

from simcluster.catalog.tables import TABLES, Row, check
from simcluster.errors import ConfigError, DataError, nearest

FILES: Final = {
    "gpu": "gpus.toml",
    "kernels": "kernels.toml",
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
    "gpu": {"fabric": "link", "pcie": "link", "kernels": "kernels"},
    "price": {"gpu": "gpu"},
    "node": {"gpu": "gpu", "fabric": "link", "network": "link"},
}
"""Keys whose value names an entry of another table."""

_FOLLOWS: Final = {
    ("gpu", "memory_mib"): ("memory_gb",),
    ("model", "num_params"): (),
    ("model", "kv_bytes_per_token"): (),
}
"""Keys not taken over by ``like``: always (), or where one of these keys is given anew."""

_added: dict[Path, dict[str, list[Row]]] = {}
"""Entries of the user's files, in the order in which they were added."""


@dataclass(frozen=True, slots=True)
class Table:
    """Entries by name, and the names by everything they are called.

    Attributes
    ----------
    rows : dict
        Entry by name.
    index : dict
        Name by its folded name and folded aliases.
    """

    rows: dict[str, Row]
    index: dict[str, str]


def fold(name: str) -> str:
    """Return `name` as names are compared.

    >>> fold("A100-80GB SXM") == fold("a100 80gb_sxm")
    True
    """
    return "".join(c for c in name.lower() if c not in " -_/")


@cache
def packaged(table: str) -> tuple[Row, ...]:
    """Return the entries of `table` that come with the package."""
    text = resources.files("simcluster.catalog").joinpath(FILES[table]).read_text("utf-8")
    return tuple(tomllib.loads(text)[table])


@cache
def entries(table: str) -> Table:
    """Return the named entries of `table`, the user's in place of packaged ones of equal name."""
    rows: dict[str, Row] = {}
    for row in (*packaged(table), *(row for added in _added.values() for row in added[table])):
        rows[str(row["name"])] = row
    index = {}
    for name, row in rows.items():
        index[fold(name)] = name
        aliases = row.get("aliases", ())
        assert isinstance(aliases, list | tuple)
        index.update({fold(alias): name for alias in aliases})
    index.update({fold(name): name for name in rows})  # a name wins over another's alias
    return Table(rows, index)


def prices(gpu: str) -> tuple[Row, ...]:
    """Return the prices of the GPU called `gpu`, its name or an alias of it."""
    index = entries("gpu").index
    rows = (*packaged("price"), *(row for added in _added.values() for row in added["price"]))
    return tuple(row for row in rows if index.get(fold(str(row["gpu"]))) == gpu)


def find(table: str, name: str, *, key: str) -> Row:
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
    known = entries(table)
    found = known.index.get(fold(name))
    if found is not None:
        return known.rows[found]
    candidates = [n for n in known.rows if _begins(n, fold(name))] if fold(name) else []
    if candidates:
        if len(candidates) == 1:
            rule, remedy = "is not a full name of the catalogue", f"Write {candidates[0]!r}."
        else:
            shown = ", ".join(map(repr, candidates[:12])) + ", ..." * (len(candidates) > 12)
            rule = f"begins {len(candidates)} names of the catalogue"
            remedy = f"Write one of {shown}."
        raise ConfigError(key, name, rule, remedy)
    raise ConfigError(
        key,
        name,
        f"no such {table} in the catalogue",
        nearest(name, known.rows) + " Or add it in a catalogue file of your own.",
    )


def _begins(name: str, prefix: str) -> bool:
    """Whether `prefix` begins the folded `name`, from its start or from a later word."""
    words = name.replace("-", " ").replace("_", " ").replace("(", " ").split()
    return any(fold("".join(words[i:])).startswith(prefix) for i in range(len(words)))


def add_file(path: Path) -> None:
    """Read a file of entries and put them before the packaged ones; see `simcluster.catalog`."""
    where = path.name
    try:
        document = tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: is not TOML ({error})") from None
    added: dict[str, list[Row]] = {table: [] for table in TABLES}
    for table, rows in document.items():
        if table not in TABLES:
            raise ConfigError(
                f"{where}: {table}",
                table,
                "the catalogue has no such table",
                nearest(table, TABLES),
            )
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise ConfigError(
                f"{where}: {table}", type(rows).__name__, "must be a list", f"Write [[{table}]]."
            )
        for i, row in enumerate(rows):
            added[table].append(
                _completed(table, row, added[table], where=f"{where}: {table}[{i}]")
            )
    previous = _added.pop(path.resolve(), None)
    _added[path.resolve()] = added
    forget()
    try:
        _check_references(added, where)
    except ConfigError:
        del _added[path.resolve()]
        if previous is not None:
            _added[path.resolve()] = previous
        forget()
        raise


def clear() -> None:
    """Forget the entries of every added file."""
    _added.clear()
    forget()


def forget() -> None:
    """Drop what was derived from the entries."""
    entries.cache_clear()


def _completed(table: str, row: Row, earlier: list[Row], *, where: str) -> Row:
    """Return a user's entry with the keys of the one it is ``like``, checked."""
    if "like" in row and "like" in TABLES[table]:
        named = {fold(str(r.get("name"))): r for r in earlier}
        like = str(row["like"])
        base = named.get(fold(like)) or find(table, like, key=f"{where}.like")
        row = {k: v for k, v in base.items() if _inherits(table, k, row)} | dict(row)
    check(table, row, where=where)
    return row


def _inherits(table: str, key: str, row: Row) -> bool:
    """Whether `row` takes `key` from the entry it is like: not what would contradict it."""
    if key in ("aliases", "source"):
        return False
    anew = _FOLLOWS.get((table, key))
    return anew is None or (anew != () and not any(other in row for other in anew))


def _check_references(added: dict[str, list[Row]], where: str) -> None:
    for table, keys in _REFERENCES.items():
        for i, row in enumerate(added[table]):
            for key, other in keys.items():
                find(other, str(row[key]), key=f"{where}: {table}[{i}].{key}")
    for i, row in enumerate(added["gpu"]):
        older = row.get("older_kernels", ())
        assert isinstance(older, list | tuple)
        for name in older:
            find("kernels", str(name), key=f"{where}: gpu[{i}].older_kernels")
