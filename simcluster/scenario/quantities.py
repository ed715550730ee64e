"""Quantities as people write them: ``800ms``, ``2 GB``, ``25/s``, ``95%``, ``P95``.

Inside, the names of keys end with their unit (``ttft_s``) and values are plain numbers. A text
with a unit stands for such a number; targets may leave the suffix out (``slo.ttft = "800ms"``).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from decimal import Decimal
from typing import Any, Final

from simcluster.errors import ConfigError
from simcluster.units import GB, MB, MS, US

UNITS: Final = {
    "_s": {"us": US, "ms": MS, "s": 1.0, "min": 60.0, "h": 3600.0},
    "_bytes": {"B": 1.0, "kB": 1e3, "MB": MB, "GB": GB, "TB": 1e12,
               "KiB": 2.0**10, "MiB": 2.0**20, "GiB": 2.0**30},
    "_rps": {"/s": 1.0, "rps": 1.0, "req/s": 1.0, "/min": 1 / 60},
}  # fmt: skip
"""By the end of a key: its units, and what one of them is in seconds, bytes, requests/s."""
_EXAMPLES: Final = {"_s": "0.8 or 800ms", "_bytes": "2e9 or 2GB", "_rps": "25 or 25/s"}
_TARGETS: Final = ("ttft", "tpot", "itl", "e2el")
_SHARES: Final = ("attainment",)
_NUMBER: Final = re.compile(r"\s*([+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)\s*(\D.*?)?\s*")


def quantity(text: str, suffix: str) -> float:
    """Return a text with a unit as a number.

    Parameters
    ----------
    text : str
        A number and its unit, such as ``"800ms"``.
    suffix : str
        A key of `UNITS`: of what it must be.

    Raises
    ------
    ValueError
        If it has no unit, or none of these.

    Examples
    --------
    >>> quantity("800ms", "_s"), quantity("1.5 min", "_s"), quantity("2 GB", "_bytes")
    (0.8, 90.0, 2000000000.0)
    """
    match = _NUMBER.fullmatch(text)
    units = UNITS[suffix]
    if match is None or match[2] not in units:
        known = ", ".join(units)
        raise ValueError(f"must be a number with one of the units {known}")
    try:
        # One rounding: 800 ms is the double nearest to 0.8.
        return float(Decimal(match[1]) * Decimal(repr(units[match[2]])))
    except ArithmeticError:  # an exponent that no number of the machine has
        raise ValueError("is out of the range of numbers") from None


def share(text: str) -> float:
    """Return a percentage or a percentile as a share.

    >>> share("95%"), share("P99")
    (0.95, 0.99)

    Raises
    ------
    ValueError
        If it is neither.
    """
    match = re.fullmatch(r"\s*(?:[pP](\d+(?:\.\d+)?)|(\d+(?:\.\d+)?)\s*%)\s*", text)
    if match is None:
        raise ValueError("must be a share such as 0.95, or written as 95% or P95")
    return float(Decimal(match[1] or match[2]) / 100)


def read_units(tables: dict[str, Any]) -> None:
    """Replace quantities with units in the tables of a scenario by plain numbers, in place.

    Raises
    ------
    ConfigError
        If a key with a unit in its name has a text that is not such a quantity.
    """
    for where, table in [*_tables("", tables)]:
        is_slo = where == "slo" or where.startswith("slo.classes.")
        for key in [*table]:
            value = table[key]
            if not isinstance(value, str):
                continue
            if is_slo and key in _TARGETS:
                if f"{key}_s" in table:
                    raise given_twice(f"{where}.{key}", value)
                table[f"{key}_s"] = _read(where, key, table.pop(key))
            elif is_slo and key in _SHARES:
                table[key] = _converted(f"{where}.{key}", value, share)
            elif any(key.endswith(suffix) for suffix in UNITS):
                table[key] = _read(where, key, value)


def given_twice(key: str, value: object) -> ConfigError:
    """Return the error for a target that is given with a unit in its value and in its name."""
    rule = f"is the same target as {key}_s, which is given too"
    return ConfigError(key, value, rule, "Leave one of them out.")


def override_key(key: str, value: object) -> str:
    """Return the key that an override means: a target's with its suffix, where a unit is given.

    >>> override_key("slo.ttft", "800ms"), override_key("slo.attainment", "P95")
    ('slo.ttft_s', 'slo.attainment')
    """
    table, _, last = key.rpartition(".")
    is_slo = table == "slo" or table.startswith("slo.classes.")
    return f"{key}_s" if isinstance(value, str) and is_slo and last in _TARGETS else key


def _read(where: str, key: str, value: str) -> float:
    suffix = next((one for one in UNITS if key.endswith(one)), "_s")
    return _converted(f"{where}.{key}", value, lambda text: quantity(text, suffix))


def _converted(key: str, value: str, read: Any) -> float:
    try:
        number: float = read(value)
    except ValueError as error:
        last = key.rpartition(".")[2]
        suffix = next((one for one in UNITS if last.endswith(one)), "_s")
        remedy = f"Write such as {_EXAMPLES[suffix]}."
        if last in _SHARES:
            remedy = "Write such as 0.95."
        raise ConfigError(key, value, str(error), remedy) from None
    return number


def _tables(name: str, value: object) -> Iterator[tuple[str, dict[str, Any]]]:
    """Give every table with its dotted name, the outer ones first."""
    if isinstance(value, dict):
        yield name, value
        for key, inner in value.items():
            yield from _tables(f"{name}.{key}".lstrip("."), inner)
    elif isinstance(value, list):
        for i, inner in enumerate(value):
            yield from _tables(f"{name}[{i}]", inner)
