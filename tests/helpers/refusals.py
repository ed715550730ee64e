"""Bad input is refused in one line, for tests."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from simcluster.errors import ConfigError, SimclusterError
from simcluster.testing.laws import require


@contextmanager
def refused(
    *parts: str, key: str | None = None, error: type[SimclusterError] = ConfigError
) -> Iterator[None]:
    """Require that the block raises `error`: one line that holds all `parts`.

    Parameters
    ----------
    *parts : str
        Parts of the line.
    key : str, optional
        Key of the error, as written in a scenario file.
    error : type
        Its class.

    Raises
    ------
    AssertionError
        If nothing is raised, or the line is another one.
    """
    try:
        yield
    except error as caught:
        line = str(caught)
        missing = [part for part in parts if part not in line]
        require(not missing, f"{missing} not in {line!r}")
        require("\n" not in line, f"more than one line: {line!r}")
        found = getattr(caught, "key", None)
        require(key in (None, found), f"the error is about {found!r}, not {key!r}: {line!r}")
    else:
        raise AssertionError("nothing was refused")
