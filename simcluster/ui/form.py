"""A form made from the schema of scenario files: every key, and changes of a file key by key.

The text of the file is all there is: a form is read from it, and a change gives a new text, in
which comments and what was not touched stay.
"""

from __future__ import annotations

import functools
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path as Folder
from typing import Any, Final, Literal

import tomlkit
from tomlkit.exceptions import TOMLKitError

from simcluster.errors import ConfigError, DataError
from simcluster.scenario.check import JsonSchema, Keys, expectation, options_of
from simcluster.scenario.file import json_schema

Path = tuple[str | int, ...]
"""A place in a file: keys, and positions in lists of tables."""

Kind = Literal["choice", "flag", "number", "text", "toml"]
"""How a value is entered; ``"toml"``: as TOML writes it, such as a list."""

_NUMBERS: Final = frozenset(("integer", "number"))


@dataclass(frozen=True, slots=True)
class Field:
    """A key as a form shows it."""

    path: Path
    kind: Kind
    expected: str
    """What it must be, such as ``a whole number >= 1``."""
    meaning: str
    options: tuple[str, ...]
    """What a choice can be."""
    default: str
    """The default as TOML writes it; empty if it has none, or one that depends on others."""
    value: str
    """As the file has it: text bare, the rest as TOML writes it; empty if it is left out."""

    @property
    def name(self) -> str:
        """Its key within its table."""
        return str(self.path[-1])


@dataclass(frozen=True, slots=True)
class Section:
    """A table as a form shows it."""

    title: str
    """Header of the table, such as ``[slo]``, or name of a strategy."""
    meaning: str
    fields: tuple[Field, ...]


@functools.cache
def _schema() -> JsonSchema:
    return json_schema()


@functools.cache
def _keys() -> Keys:
    return Keys(_schema())


def tables_of(text: str) -> dict[str, Any]:
    """Return the tables of a file.

    Raises
    ------
    DataError
        If it is not TOML.
    """
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"The file is not TOML: {error}. Correct it there.") from None


def sections(text: str) -> list[Section]:
    """Return the form of a file: its tables with all keys that they can have.

    Tables that the file does not have are there with empty fields, except those that are named or
    counted by the user (strategies, classes of requests, models): these come with the file's own.

    Raises
    ------
    DataError
        If it is not TOML.
    """
    document = tables_of(text)
    found: list[Section] = []
    for name, schema in _schema()["properties"].items():
        found += _of_key((name,), schema, document.get(name), f"[{name}]")
    loose = [
        _field((name,), schema, document.get(name))
        for name, schema in _schema()["properties"].items()
        if not _tables(schema) and not _items(schema)
    ]
    return [*found, Section("the top of the file", "", tuple(loose))] if loose else found


def _of_key(path: Path, schema: JsonSchema, value: Any, title: str) -> Iterator[Section]:
    """Give the sections of a key that holds a table, tables by name, or a list of tables."""
    if items := _items(schema):
        for position, one in enumerate(value if isinstance(value, list) else ()):
            if isinstance(one, Mapping) and (table := _chosen(items, one)) is not None:
                named = one.get("name") or one.get("kind") or position + 1
                yield from _of_table((*path, position), table, one, f"[{title}] {named}")
        return
    if isinstance(value, str | int | float | list):
        return  # a name in place of a table: it stands in the table around it
    tables = _tables(schema)
    here = value if isinstance(value, Mapping) else {}
    table = _chosen(tables, here)
    if table is None:
        return
    if "properties" not in table:  # tables by names that the user gives
        named = _keys().resolve(table.get("additionalProperties") or {})
        for name, one in here.items():
            yield from _of_table((*path, name), named, one, f"{title[:-1]}.{name}]")
        return
    if not here and len(path) > 1:
        return  # an inner table that the file does not have: a field of the one around it
    yield from _of_table(path, table, here, title)


def _of_table(
    path: Path, table: JsonSchema, value: Mapping[str, Any], title: str
) -> Iterator[Section]:
    fields, inner = [], []
    for name, schema in table.get("properties", {}).items():
        own = value.get(name)
        below = list(_of_key((*path, name), schema, own, f"{title.rstrip(']')}.{name}]"))
        if below:
            inner += below
        else:
            fields.append(_field((*path, name), schema, own))
    yield Section(title, str(table.get("description", "")), tuple(fields))
    yield from inner


def _members(schema: JsonSchema) -> list[JsonSchema]:
    whole = _keys().resolve(schema)
    return _keys().members(whole) or [whole]


def _tables(schema: JsonSchema) -> list[JsonSchema]:
    """Return the tables that a key can hold."""
    return [member for member in _members(schema) if member.get("type") == "object"]


def _items(schema: JsonSchema) -> list[JsonSchema]:
    """Return the tables of which a key can hold a list."""
    found: list[JsonSchema] = []
    for member in _members(schema):
        if member.get("type") == "array":
            found += _tables(member.get("items") or {})
    return found


def _chosen(tables: Sequence[JsonSchema], value: Mapping[str, Any]) -> JsonSchema | None:
    """Return the table that `value` is: by its kind, else the first."""
    for table in tables:
        if table.get("properties", {}).get("kind", {}).get("const") == value.get("kind", ""):
            return table
    return tables[0] if tables else None


def _field(path: Path, schema: JsonSchema, value: Any) -> Field:
    whole = _keys().resolve(schema)
    options = tuple(str(option) for option in options_of(whole))
    kinds = {str(member.get("type")) for member in _members(schema)}
    kind: Kind = "toml"
    if options and len(options) > 1 and isinstance(value, str | None):
        kind = "choice"
    elif kinds == {"boolean"}:
        kind = "flag"
    elif kinds <= _NUMBERS:
        kind = "number"
    elif "string" in kinds and isinstance(value, str | None):
        kind = "text"
    default = whole.get("default")
    plain = default is None or isinstance(default, dict) or default == []
    return Field(
        path,
        kind,
        expectation(whole),
        str(whole.get("description", "")),
        options if kind == "choice" else (),
        "" if plain else _as_toml(default),
        "" if value is None else value if isinstance(value, str) else _as_toml(value),
    )


def _as_toml(value: Any) -> str:
    """Return a value on one line, as TOML writes it."""
    if isinstance(value, Mapping):
        inner = ", ".join(f"{tomlkit.key(k).as_string()} = {_as_toml(v)}" for k, v in value.items())
        return f"{{ {inner} }}" if inner else "{}"
    if isinstance(value, list):
        return f"[{', '.join(map(_as_toml, value))}]"
    return str(tomlkit.item(value).as_string())


def with_value(text: str, path: Path, entered: str, kind: Kind) -> str:
    """Return the text of a file with another value of a key.

    Parameters
    ----------
    text : str
        The file.
    path : tuple of str and int
        The key.
    entered : str
        What a person wrote; empty takes the key out. A number may have a unit (``800ms``).
    kind : str
        Of its field.

    Raises
    ------
    ConfigError
        If it cannot be read as a value.
    DataError
        If the file is not TOML.
    """
    tables_of(text)
    document = tomlkit.parse(text)
    entered = entered.strip()
    table: Any = document
    around: list[Any] = []
    for piece in path[:-1]:
        if isinstance(piece, str) and piece not in table:
            if not entered:
                return text
            table[piece] = tomlkit.table()
        around.append(table)
        table = table[piece]
    name = str(path[-1])
    if not entered:
        if name in table:
            del table[name]
        if len(path) > 2 and isinstance(path[-2], str) and not table:
            del around[-1][path[-2]]  # the last key of an inner table takes the table along
        return tomlkit.dumps(document)
    table[name] = _read(".".join(map(str, path)), entered, kind)
    return tomlkit.dumps(document)


def _read(key: str, entered: str, kind: Kind) -> Any:
    if kind in ("text", "choice"):
        return entered
    try:
        return tomlkit.value(entered)
    except (TOMLKitError, ValueError):
        if kind == "number":
            return entered  # with a unit, or refused with the others by the scenario itself
        remedy = 'Write such as 4, true, [1, 2], or { kind = "fixed", prompt_len = 512 }.'
        raise ConfigError(key, entered, "is not a value as TOML writes it", remedy) from None


def with_whole_paths(text: str, folder: Folder) -> str:
    """Return the text of a file of `folder` with its relative paths made absolute.

    A path is a text, other than a name that the user gives, at which something is in `folder`.

    Raises
    ------
    DataError
        If the file is not TOML.
    """
    document: Any = tables_of(text)
    for path, value in [*_texts((), document)]:
        is_name = path[-1] == "name" and path != ("model", "name")
        if value and not is_name and (folder / value).exists():
            text = _with_text(text, path, str(folder / value))
    return text


def _texts(path: Path, value: Any) -> Iterator[tuple[Path, str]]:
    """Give all texts in a table or list, with their places."""
    inside = value.items() if isinstance(value, Mapping) else enumerate(value)
    for key, one in inside:
        if isinstance(one, Mapping | list):
            yield from _texts((*path, key), one)
        elif isinstance(one, str):
            yield (*path, key), one


def _with_text(text: str, path: Path, value: str) -> str:
    document = tomlkit.parse(text)
    table: Any = document
    for piece in path[:-1]:
        table = table[piece]
    table[path[-1]] = value
    return tomlkit.dumps(document)


def without_table(text: str, path: Path) -> str:
    """Return the text of a file without one of its tables.

    Raises
    ------
    DataError
        If the file is not TOML.
    """
    tables_of(text)
    document = tomlkit.parse(text)
    table: Any = document
    for piece in path[:-1]:
        table = table[piece]
    del table[path[-1]]
    return tomlkit.dumps(document)


def with_strategy(text: str, kind: str) -> str:
    """Return the text of a file with one more strategy, of a kind, named after it.

    Raises
    ------
    DataError
        If the file is not TOML.
    """
    names = {str(one.get("name")) for one in tables_of(text).get("strategy", ())}
    name, number = kind, 2
    while name in names:
        name, number = f"{kind} {number}", number + 1
    head = text if text.endswith("\n") else f"{text}\n"
    return f'{head}\n[[strategy]]\nname = "{name}"\nkind = "{kind}"\n'


def strategy_kinds() -> list[str]:
    """Return the kinds that a strategy can be of."""
    strategies = _schema()["properties"]["strategy"]
    return [str(table["properties"]["kind"]["const"]) for table in _items(strategies)]
