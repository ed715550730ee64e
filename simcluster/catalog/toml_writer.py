"""Write a document as TOML; ``tomllib`` reads it back to the same document."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import tomli_w


def to_toml(document: Mapping[str, object]) -> str:
    """Return `document` as TOML text; the same document gives the same bytes.

    Parameters
    ----------
    document : mapping of str to object
        Tables, lists of tables, and values: text, numbers, truth values, lists of them. Keys whose
        value is None are left out, as TOML has no null.

    Raises
    ------
    TypeError
        If a value is something else.
    """
    return tomli_w.dumps(_without_none(document), indent=2)


def _without_none(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_none(inner) for key, inner in value.items() if inner is not None}
    if isinstance(value, list | tuple):
        return [_without_none(inner) for inner in value]
    return value
