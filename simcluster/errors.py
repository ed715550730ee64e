"""What simcluster raises: one line that says key, value, rule and remedy."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


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
        shown = (
            "" if value is None else f" = {value!r}" if isinstance(value, str) else f" = {value}"
        )
        super().__init__(f"{key}{shown}: {rule}. {remedy}")
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


def nearest(name: str, known: Iterable[str], *, count: int = 3) -> str:
    """Return ``Did you mean 'x' or 'y'?`` for the known names closest to `name`.

    Parameters
    ----------
    name : str
        What the user wrote.
    known : iterable of str
        The names that exist; compared without regard to case.
    count : int
        Most names to offer.

    Returns
    -------
    str
        A sentence; it lists the known names when none is close (the first 12 of many).
    """
    names = list(known)
    by_lower = {n.lower(): n for n in names}
    close = difflib.get_close_matches(name.lower(), list(by_lower), n=count, cutoff=0.5)
    if close:
        return "Did you mean " + " or ".join(repr(by_lower[c]) for c in close) + "?"
    shown = ", ".join(sorted(names)[:12]) + (", ..." if len(names) > 12 else "")
    return f"Known: {shown}."
