"""What simcluster raises: one line that says key, value, rule and remedy."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from typing import Final

_SHOWN: Final = 80


def printable(text: str) -> str:
    r"""Return `text` with line ends and control characters written out.

    >>> printable("red\x1b[31m")
    'red\\x1b[31m'
    """
    return "".join(
        one if one.isprintable() else one.encode("unicode_escape").decode() for one in text
    )


def in_message(value: object) -> str:
    """Return `value` as messages show it: printable, and not longer than 80 characters."""
    try:
        text = repr(value) if isinstance(value, str) else str(value)
    except ValueError:  # a whole number of more digits than Python writes
        text = "a number of thousands of digits"
    text = printable(text)
    return text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "..."


def unfit_name(name: str) -> str:
    """Return the rule that `name` breaks as a name in tables and files; empty if it is fit.

    >>> unfit_name("vLLM 0.19"), unfit_name("=cmd()")
    ('', 'must not begin with =, +, - or @: a spreadsheet takes such a cell for a formula')
    """
    if not name.isprintable():
        return "must not hold control characters"
    if name.startswith(("=", "+", "-", "@")):
        return "must not begin with =, +, - or @: a spreadsheet takes such a cell for a formula"
    return ""


class SimclusterError(Exception):
    """Base of every error that is the user's to mend; the command line exits with 1."""


class ConfigError(SimclusterError):
    """A setting that cannot be used.

    Parameters
    ----------
    key : str
        The key as written in the scenario file, such as ``cluster.gpu``.
    value : object
        The value got; ``None`` where the key is missing.
    rule : str
        The rule it breaks, a clause without a full stop.
    remedy : str
        The way out, a sentence.
    missing_bytes : float, optional
        Memory per GPU that is missing, where that is the rule it breaks.
    """

    def __init__(
        self,
        key: str,
        value: object,
        rule: str,
        remedy: str,
        missing_bytes: float | None = None,
    ) -> None:
        got = "" if value is None else f" = {in_message(value)}"
        super().__init__(f"{key}{got}: {rule}. {remedy}")
        self.key = key
        self.value = value
        self.rule = rule
        self.remedy = remedy
        self.missing_bytes = missing_bytes

    def __reduce__(self) -> tuple[type[ConfigError], tuple[str, object, str, str, float | None]]:
        # Exceptions are pickled with their message alone: one raised in a worker must come back.
        return type(self), (self.key, self.value, self.rule, self.remedy, self.missing_bytes)


class DataError(SimclusterError):
    """An input file (trace, result folder, measured data) that cannot be used."""


class WorkerError(SimclusterError):
    """A process that ran simulations, here or on a cluster, is lost; what it had done is not."""


class InvariantError(AssertionError):
    """A bug of ours: the simulation reached a state that its own laws exclude."""


def same_thing(name: str, known: Iterable[str]) -> str:
    """Return ``Did you mean 'x'?`` for known names of which `name` is a slip, else nothing.

    For names of products, where one letter or digit more is another product: the numbers of both
    must be the same, in the same order, and so must the words but for a slip in a long one.

    >>> same_thing("lama-2-7b", ["llama-2-7b", "llama-2-70b"])
    "Did you mean 'llama-2-7b'?"
    >>> same_thing("H10O", ["H100", "H200"])
    "Did you mean 'H100'?"
    >>> same_thing("L40", ["L40S"])
    ''
    """
    parts = _words(name)
    close = [other for other in known if _is_slip(parts, _words(other))]
    return f"Did you mean {' or '.join(map(repr, close[:3]))}?" if close else ""


def _words(name: str) -> list[str]:
    """Return the numbers and words of a name; the letter O beside a digit is a zero."""
    digits = re.sub(r"(?<=[0-9])o|o(?=[0-9])", "0", name.lower())
    return re.findall(r"[0-9]+|[a-z]+", digits)


def _numbers(name: str) -> list[str]:
    """Return the numbers in a name, in order."""
    return [word for word in _words(name) if word.isdigit()]


def _is_slip(one: list[str], other: list[str]) -> bool:
    """Whether two names differ by slips in long words alone."""
    if len(one) != len(other):
        return False
    pairs = [(a, b) for a, b in zip(one, other, strict=True) if a != b]
    return all(
        min(len(a), len(b)) >= 4 and difflib.SequenceMatcher(None, a, b).ratio() >= 0.75
        for a, b in pairs
    )


def nearest(name: str, known: Iterable[str], *, count: int = 3) -> str:
    """Return ``Did you mean 'x' or 'y'?`` for the known names closest to `name`.

    Parameters
    ----------
    name : str
        What the user wrote.
    known : iterable of str
        The names that exist; compared without regard to case. One with other numbers is another
        thing and no slip.
    count : int
        Most names to offer.

    Returns
    -------
    str
        A sentence; it lists the known names when none is close (the first 12 of many).
    """
    names = list(known)
    digits = _numbers(name)
    by_lower = {n.lower(): n for n in names if _numbers(n) == digits}
    close = difflib.get_close_matches(name.lower(), list(by_lower), n=count, cutoff=0.5)
    if close:
        return "Did you mean " + " or ".join(repr(by_lower[c]) for c in close) + "?"
    shown = ", ".join(sorted(names)[:12]) + (", ..." if len(names) > 12 else "")
    return f"Known: {shown}."
