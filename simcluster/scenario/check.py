"""From a parsed file to settings: pydantic checks, and its findings become our error lines.

Unit, rule, default and meaning of a key stand in one place, the ``Field`` beside the dataclass
attribute; the lines a user reads, the JSON Schema and the table of keys are all made from it.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from simcluster.errors import ConfigError, nearest

JsonSchema = dict[str, Any]
"""A JSON Schema as pydantic makes it."""

T = TypeVar("T")

_SHOWN_CHARS = 60
_NEAR = 0.75
"""Likeness (`difflib`) of a key of another table from which a key of this table may be meant."""


def validated(adapter: TypeAdapter[T], tables: Mapping[str, object]) -> T:
    """Return `tables` as the settings of `adapter`.

    Raises
    ------
    ConfigError
        For the first finding: unknown keys first (a misspelt key is also a missing one).
    """
    try:
        # Through JSON: strict types still accept a list for a tuple and a table for a dataclass.
        return adapter.validate_json(json.dumps(tables, default=str))
    except ValidationError as error:
        found = _findings(error)
        raise _config_error(found, Keys(adapter.json_schema())) from None


def _findings(error: ValidationError) -> list[ErrorDetails]:
    found = error.errors(include_url=False)
    # A list with a bad item is also reported as too short; only a truly empty one counts.
    found = [e for e in found if not (e["type"] == "too_short" and e["input"])] or found
    return sorted(found, key=lambda e: e["type"] != "unexpected_keyword_argument")


def _config_error(found: list[ErrorDetails], keys: Keys) -> ConfigError:
    """Return the error line of the first finding; it counts the others."""
    error = found[0]
    more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
    place = keys.find(error["loc"])
    value = shown(error["input"])
    match error["type"]:
        case "unexpected_keyword_argument":
            name = str(error["loc"][-1])
            remedy = nearest(name, place.siblings)
            if where := ", ".join(keys.tables_with(name)):
                near = difflib.get_close_matches(name, place.siblings, 1, _NEAR)
                remedy = f"Did you mean {near[0]!r}? As written it" if near else "It"
                remedy += f" belongs in {where}."
            return ConfigError(place.key, value, f"is not a key of {place.table}", remedy + more)
        case "union_tag_invalid":
            tag, kinds = str(error["ctx"]["tag"]), place.kinds
            rule = f"must be {one_of(kinds)}"
            return ConfigError(f"{place.key}.{place.tag}", tag, rule, nearest(tag, kinds) + more)
        case "union_tag_not_found":
            rule = f"is missing; it must be {one_of(place.kinds)}"
            remedy = f"Add {place.tag} = {place.kinds[0]!r} or another of them."
            return ConfigError(f"{place.key}.{place.tag}", None, rule, remedy + more)
        case "missing":
            rule = f"is missing; it must be {place.expected}"
            return ConfigError(place.key, None, rule, place.advice("Add it") + more)
        case "literal_error":
            hint = nearest(str(error["input"]), [str(o) for o in options_of(place.schema)])
            remedy = "" if hint.startswith("Known") else hint  # the rule lists them
            return ConfigError(place.key, value, f"must be {place.expected}", remedy + more)
        case "value_error":
            rule = str(error["ctx"]["error"])
            return ConfigError(place.key, value, rule, place.advice("Change it") + more)
        case _:
            rule = f"must be {place.expected}"
            return ConfigError(place.key, value, rule, place.advice("Change it") + more)


def shown(value: object) -> object:
    """Return `value` as an error line shows it: short, and truth values as TOML writes them."""
    if isinstance(value, bool):
        return _Bare("true" if value else "false")
    if isinstance(value, str):
        return value if len(value) <= _SHOWN_CHARS else value[: _SHOWN_CHARS - 3] + "..."
    if isinstance(value, dict):
        return _Bare("a table")
    if value is None:
        return None
    text = json.dumps(value, default=str)
    return _Bare(text if len(text) <= _SHOWN_CHARS else text[: _SHOWN_CHARS - 3] + "...")


class _Bare:
    """Text that is shown without quotation marks."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True, slots=True)
class Place:
    """A key of a scenario file and what its schema says."""

    key: str
    """As written in the file, such as ``strategy[1].tp_size``."""
    table: str
    """The table it stands in, such as ``[slo]``."""
    schema: JsonSchema
    """Its schema, references resolved."""
    siblings: tuple[str, ...]
    """Keys that its table knows."""

    @property
    def expected(self) -> str:
        """What it must be, such as ``a whole number >= 1``."""
        return expectation(self.schema)

    @property
    def kinds(self) -> list[str]:
        """The alternatives of a table whose kind one of its keys tells."""
        return list(_without_null(self.schema).get("discriminator", {}).get("mapping", {}))

    @property
    def tag(self) -> str:
        """The key that tells the kind."""
        return str(_without_null(self.schema).get("discriminator", {}).get("propertyName", "kind"))

    def advice(self, verb: str) -> str:
        """A sentence: `verb`, the default if there is one, the meaning if it is known."""
        default = self.schema.get("default")
        if isinstance(default, dict | list):
            verb += " or leave it out"
        elif default is not None:
            verb += f" or leave it out (default {json.dumps(default)})"
        meaning = self.schema.get("description")
        if meaning and not meaning[1:2].isupper():  # an abbreviation stays as it is
            meaning = meaning[0].lower() + meaning[1:]
        return f"{verb}: {meaning}" if meaning else f"{verb}."


def options_of(schema: JsonSchema) -> list[object]:
    """Return the values an enumerated key can have; empty for other keys."""
    if "const" in schema:
        return [schema["const"]]
    for member in schema.get("anyOf", []):
        if options := options_of(member):
            return options
    return list(schema.get("enum", []))


def one_of(options: list[Any]) -> str:
    """Return ``'a' or one of 'a', 'b'`` in words."""
    quoted = [repr(o) if isinstance(o, str) else str(o) for o in options]
    return quoted[0] if len(quoted) == 1 else "one of " + ", ".join(quoted)


def _bound(value: float) -> str:
    return str(int(value)) if value == int(value) else str(value)


_BOUNDS = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}


def expectation(schema: JsonSchema) -> str:
    """Return in words what a value must be, such as ``a number > 0``."""
    if options := options_of(schema):
        return one_of(options)
    members = schema.get("anyOf") or schema.get("oneOf") or []
    if members:
        alternatives = [expectation(m) for m in members if m.get("type") != "null"]
        return " or ".join(dict.fromkeys(" or ".join(alternatives).split(" or ")))
    if "$ref" in schema or schema.get("type") == "object":
        return "a table"
    bounds = " and ".join(
        f"{sign} {_bound(schema[b])}" for b, sign in _BOUNDS.items() if b in schema
    )
    kind = schema.get("type")
    if kind == "array":
        some = "a list with at least one item" if schema.get("minItems") else "a list"
        item = schema.get("items") or {}
        return f"{some}, each {expectation(item)}" if item else some
    words = {
        "integer": "a whole number",
        "number": "a number",
        "boolean": "true or false",
        "string": "text that is not empty" if schema.get("minLength") else "text",
    }
    return f"{words.get(str(kind), 'another value')} {bounds}".strip()


class Keys:
    """Finds keys in the JSON Schema of a scenario file."""

    def __init__(self, root: JsonSchema) -> None:
        self._root = root

    def resolve(self, schema: JsonSchema) -> JsonSchema:
        """Return `schema` with its reference followed; its own words win."""
        if "$ref" not in schema:
            return schema
        target = self._root["$defs"][schema["$ref"].rsplit("/", 1)[1]]
        return {**target, **{k: v for k, v in schema.items() if k != "$ref"}}

    def find(self, loc: tuple[int | str, ...]) -> Place:
        """Return the place that pydantic calls `loc`."""
        key, table, schema, siblings = "", "a scenario file", self._root, ()
        for piece in loc:
            schema = self.resolve(_without_null(self.resolve(schema)))
            if isinstance(piece, int):
                key += f"[{piece}]"
                schema = self.resolve(schema.get("items") or {})
            elif piece in (mapping := schema.get("discriminator", {}).get("mapping", {})):
                tag = schema["discriminator"]["propertyName"]
                schema = self.resolve({"$ref": mapping[piece]})
                table = f"{_header(key)} with {tag} = {piece!r}"
            elif (member := self._member(schema, piece)) is not None:
                schema = member
            else:
                if "discriminator" not in schema and key:
                    table = table if " with " in table else _header(key)
                properties = schema.get("properties", {})
                siblings = tuple(properties)
                key = f"{key}.{piece}" if key else str(piece)
                schema = properties.get(piece) or schema.get("additionalProperties") or {}
        return Place(key, table, self.resolve(schema), siblings)

    def _member(self, schema: JsonSchema, piece: str) -> JsonSchema | None:
        """Return the alternative of a union that pydantic labels `piece`, if `schema` is one."""
        members = self.members(schema)
        if not members:
            return None
        named = [m for m in members if piece in (m.get("title"), _kind(m))]
        return named[0] if named else schema

    def members(self, schema: JsonSchema) -> list[JsonSchema]:
        """Return the alternatives of a union, references resolved, unions in it unrolled."""
        found: list[JsonSchema] = []
        for member in schema.get("anyOf") or schema.get("oneOf") or []:
            inner = self.resolve(member)
            found += self.members(inner) or [inner]
        return [m for m in found if m.get("type") != "null"]

    def tables_with(self, name: str) -> list[str]:
        """Return the tables that have a key `name`, such as ``[slo]``."""
        return list(dict.fromkeys(t for t, table in self.tables() if name in table["properties"]))

    def tables(self) -> Iterator[tuple[str, JsonSchema]]:
        """Give header and schema of every table, the top level first."""
        yield "the top of the file", self._root
        for name, schema in self._root["properties"].items():
            whole = self.resolve(schema)
            if whole.get("type") == "object":
                yield f"[{name}]", whole
                for key, inner in whole["properties"].items():
                    yield from self._inside(f"{name}.{key}", inner)
            for table in self._objects(whole):
                yield _titled(f"[{name}]", table), table
            for table in self.members(self.resolve(whole.get("items") or {})):
                yield _titled(f"[[{name}]]", table), table
                yield from self._of_member(name, table)

    def _inside(self, path: str, schema: JsonSchema) -> Iterator[tuple[str, JsonSchema]]:
        """Give the tables that a key of a table holds: several, one for each name, or one."""
        for member in self.members(self.resolve(schema)):
            item = self.resolve(member.get("items") or {})
            if item.get("type") == "object":
                yield f"[[{path}]]", item
            elif named := member.get("additionalProperties"):
                yield f"[{path}.NAME]", self.resolve(named)
            elif member.get("type") == "object":
                yield _titled(f"[{path}]", member), member

    def _of_member(self, name: str, table: JsonSchema) -> Iterator[tuple[str, JsonSchema]]:
        """Give the tables inside one of the tables ``[[name]]``."""
        for key, inner in table.get("properties", {}).items():
            item = self.resolve(inner.get("items") or {})
            if item.get("type") == "object":
                yield f"[[{name}.{key}]]", item
            for own in self._objects(self.resolve(inner)):
                yield f"[{name}.{key}] with kind = {_kind(table)!r}", own

    def _objects(self, schema: JsonSchema) -> Iterator[JsonSchema]:
        """Give the members of `schema` that are tables."""
        return (member for member in self.members(schema) if member.get("type") == "object")


def _titled(header: str, table: JsonSchema) -> str:
    kind = _kind(table)
    return f"{header} with kind = {kind!r}" if kind else header


def _kind(table: JsonSchema) -> str | None:
    """Return the kind that a table of a union must state, if it has one."""
    kind = table.get("properties", {}).get("kind", {}).get("const")
    return None if kind is None else str(kind)


def markdown(root: JsonSchema) -> str:
    """Return tables of all keys of a JSON Schema, in Markdown."""
    keys = Keys(root)
    parts = []
    for header, table in keys.tables():
        rows = ["| key | value | default | meaning |", "|---|---|---|---|"]
        for name, schema in table["properties"].items():
            place = keys.resolve(schema)
            default = place.get("default")
            if name in table.get("required", ()):
                given = "required"
            else:
                hidden = default in (None, []) or isinstance(default, dict)
                given = "" if hidden else f"`{json.dumps(default)}`"
            meaning = place.get("description", "")
            rows.append(f"| `{name}` | {expectation(place)} | {given} | {meaning} |")
        title = header if header.startswith("the") else f"`{header}`"
        parts.append(f"### {title[0].upper()}{title[1:]}\n\n" + "\n".join(rows))
    return "\n\n".join(parts) + "\n"


def _without_null(schema: JsonSchema) -> JsonSchema:
    """Return the one alternative of an optional value; other schemas as they are."""
    members = [m for m in schema.get("anyOf", []) if m.get("type") != "null"]
    return members[0] if len(members) == 1 else schema


def _header(key: str) -> str:
    """Return the header of the table `key` as TOML writes it."""
    bare = key.split("[")[0]
    return f"[[{bare}]]" if "[" in key else f"[{bare}]"
