"""Kinds of result folders, by the file that each has."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from simcluster.errors import DataError, printable
from simcluster.runs.output import interrupted

KINDS: Final[Mapping[str, str]] = {
    "goodput.json": "goodput",
    "ranking.json": "rank",
    "cooptimize.json": "cooptimize",
    "meta.json": "runs",
}
"""By file: the command that wrote the folder, or ``"runs"`` of `run` and `compare`."""


def kind_of(folder: Path) -> tuple[str, Path]:
    """Return the kind of a result folder, one of the values of `KINDS`, and its file.

    Raises
    ------
    DataError
        If it is none.
    """
    for name, kind in KINDS.items():
        if (folder / name).is_file():
            return kind, folder / name
    if words := interrupted(folder):
        raise DataError(words)
    what = "is not a result folder" if folder.exists() else "is not there"
    raise DataError(
        f"{printable(str(folder))}: {what}. Give one that `-o` of run, compare, goodput, rank or "
        "plan wrote, or `--results` of cooptimize."
    )


def with_scenario(folder: Path) -> tuple[str, Path]:
    """Return the kind and the file of a result folder that has its scenario.

    Raises
    ------
    DataError
        If it is none, or a search of a version before 0.2, which kept no scenario.
    """
    kind, file = kind_of(folder)
    if (folder / "scenario.toml").is_file():
        return kind, file
    if kind == "runs":
        raise DataError(f"{printable(str(folder))}: is not a result folder: no scenario.toml.")
    raise DataError(
        f"{printable(str(folder))}: has no scenario.toml: a version before 0.2 wrote it. Run "
        f"`simcluster {kind} ...` into it again."
    )


@contextlib.contextmanager
def whole(file: Path) -> Iterator[None]:
    """Turn what goes wrong with the contents of a file of `KINDS` into one line.

    Raises
    ------
    DataError
        In place of an error that a missing or unfit value makes.
    """
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError, StopIteration, OSError) as error:
        raise DataError(
            f"{printable(str(file))}: is damaged or of another version "
            f"({type(error).__name__}: {printable(str(error))}). "
            f"Run `simcluster {KINDS[file.name]}` again."
        ) from None


def read_study(file: Path) -> Mapping[str, Any]:
    """Return what the file of a search, a ranking or a co-optimisation holds.

    Raises
    ------
    DataError
        If it cannot be read, or is not a JSON object.
    """
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        text = printable(str(error))
        raise DataError(f"{printable(str(file))}: cannot be read ({text}).") from None
    if not isinstance(values, dict):
        raise DataError(f"{printable(str(file))}: is not what simcluster wrote.")
    return values
