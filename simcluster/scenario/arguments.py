"""Arguments of the public functions: what cannot be meant is refused at once, in one line."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from simcluster.errors import ConfigError, nearest


def is_whole(value: object) -> bool:
    """Whether `value` is a whole number; a truth value is none.

    >>> is_whole(3), is_whole(3.0), is_whole(True)
    (True, False, False)
    """
    return hasattr(value, "__index__") and not isinstance(value, bool)


def is_number(value: object) -> bool:
    """Whether `value` is a finite number; a truth value is none.

    >>> is_number(3), is_number(0.5), is_number("8"), is_number(math.nan)
    (True, True, False, False)
    """
    real = hasattr(value, "__float__") and not isinstance(value, bool)
    return real and math.isfinite(float(value))  # type: ignore[arg-type]  # it has `__float__`


def whole(key: str, value: object, *, least: int, remedy: str) -> None:
    """Refuse what is not a whole number of at least `least`.

    Raises
    ------
    ConfigError
        If so.
    """
    if not is_whole(value) or value < least:  # type: ignore[operator]  # a number by then
        raise ConfigError(key, value, f"must be a whole number >= {least}", remedy)


def between(key: str, value: object, *, above: float, below: float, remedy: str) -> None:
    """Refuse what is not a number above `above` and below `below`.

    Raises
    ------
    ConfigError
        If so.
    """
    if not is_number(value) or not above < value < below:  # type: ignore[operator]  # as above
        limits = f"> {above:g}" + ("" if math.isinf(below) else f" and < {below:g}")
        raise ConfigError(key, value, f"must be a number {limits}", remedy)


def one_of(key: str, value: object, known: Sequence[str], what: str) -> None:
    """Refuse what is not one of some words.

    Raises
    ------
    ConfigError
        If so: it is not `what`; the nearest is offered.
    """
    if value not in known:
        raise ConfigError(key, value, f"is not {what}", nearest(str(value), known))


def of_type(key: str, value: object, kind: type[Any], what: str, remedy: str) -> None:
    """Refuse what is not of a type.

    Raises
    ------
    ConfigError
        If so: it must be `what`.
    """
    if not isinstance(value, kind):
        raise _refused(key, value, what, remedy)


def path(key: str, value: object, remedy: str) -> Path:
    """Return `value` as a path.

    Raises
    ------
    ConfigError
        If it is none.
    """
    if isinstance(value, str | os.PathLike) and "\0" not in str(value):
        return Path(value)
    raise _refused(key, value, "a path", remedy)


def mapping(key: str, value: object, remedy: str) -> None:
    """Refuse what is not a mapping with text for keys.

    Raises
    ------
    ConfigError
        If so.
    """
    if not isinstance(value, Mapping) or not all(isinstance(k, str) for k in value):
        raise _refused(key, value, "a mapping with text for keys", remedy)


def _refused(key: str, value: object, what: str, remedy: str) -> ConfigError:
    """Return the line about a value of a wrong type: short values are shown."""
    kind = type(value).__name__
    shown = value if value is None or isinstance(value, str | int | float | Path) else None
    got = "" if isinstance(value, str | int | float | Path) else f", not {kind}"
    return ConfigError(key, shown, f"must be {what}{got}", remedy)
