"""Write a scenario document as TOML; ``tomllib`` reads it back to the same document."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping

_BARE = re.compile(r"[A-Za-z0-9_-]+")


def to_toml(document: Mapping[str, object]) -> str:
    """Return `document` as TOML text.

    Parameters
    ----------
    document : mapping of str to object
        Tables, lists of tables, and values: text, numbers, truth values, lists of them. Keys whose
        value is None are left out (TOML has no null).

    Returns
    -------
    str
        Plain keys first, then tables, then lists of tables, each in the order given.
    """
    return "\n".join(_table(document, ())).strip("\n") + "\n"


def _table(table: Mapping[str, object], path: tuple[str, ...]) -> list[str]:
    """Lines of one table: its values, then its subtables with their headers."""
    lines, subtables = [], []
    for key, value in table.items():
        inner = (*path, key)
        name = ".".join(_key(part) for part in inner)
        if isinstance(value, Mapping):
            subtables += ["", f"[{name}]", *_table(value, inner)]
        elif isinstance(value, list | tuple) and value and isinstance(value[0], Mapping):
            for row in value:
                subtables += ["", f"[[{name}]]", *_table(row, inner)]
        elif value is not None:
            lines.append(f"{_key(key)} = {_value(value)}")
    return lines + subtables


def _key(key: str) -> str:
    return key if _BARE.fullmatch(key) else _value(key)


def _value(value: object) -> str:
    """One value; Python writes floats (``1e-05``, ``inf``, ``nan``) as TOML reads them."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        return repr(float(value))
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_value(item) for item in value) + "]"
    raise TypeError(f"no TOML for {type(value).__name__}")
