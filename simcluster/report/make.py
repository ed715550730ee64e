"""Recognise a result folder and write its report."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from simcluster.errors import DataError, printable
from simcluster.report.page import Page, to_html
from simcluster.runs import folder as store
from simcluster.runs import output
from simcluster.scenario import arguments


def page_of(folder: str | Path) -> Page:
    """Return the report of a result folder.

    Parameters
    ----------
    folder : str or Path
        What `simcluster run`, `compare`, `goodput`, `rank` or `cooptimize` wrote.

    Raises
    ------
    DataError
        If it is none of them, or a file of it is damaged or of another version.
    ConfigError
        If its scenario names what is no longer there.
    """
    place = arguments.path("folder", folder, "Give a folder that `-o` of a command wrote.")
    known = {
        "goodput.json": "simcluster.report.of_goodput",
        "ranking.json": "simcluster.report.of_rank",
        "cooptimize.json": "simcluster.report.of_cooptimize",
    }
    for name in known:
        if (place / name).is_file():
            return _of_study(place, name)
    if not (place / "meta.json").is_file():
        what = "is not there" if not place.exists() else "is not a result folder"
        raise DataError(
            f"{printable(str(place))}: {what}. Give one that `simcluster run`, `compare`, "
            "`goodput`, `rank` or `cooptimize` wrote with -o."
        )
    from simcluster.report import of_runs

    comparison = store.read(place)
    if not comparison.rows:
        raise DataError(f"{printable(str(place))}: holds no run. Write it again with -o.")
    return of_runs.page(comparison, place)


def _of_study(place: Path, name: str) -> Page:
    from simcluster.report import of_cooptimize, of_goodput, of_rank

    pages = {
        "goodput.json": of_goodput.page,
        "ranking.json": of_rank.page,
        "cooptimize.json": of_cooptimize.page,
    }
    command = {"goodput.json": "goodput", "ranking.json": "rank"}.get(name, "cooptimize")
    if not (place / "scenario.toml").is_file():
        raise DataError(
            f"{printable(str(place))}: has no scenario.toml: a version before 0.2 wrote it. Run "
            f"`simcluster {command} ... -o {printable(str(place))}` again."
        )
    result = _json(place / name)
    try:
        return pages[name](result, place)
    except (LookupError, TypeError, ValueError, AttributeError, StopIteration, OSError) as error:
        raise DataError(
            f"{printable(str(place / name))}: is damaged or of another version "
            f"({type(error).__name__}: {printable(str(error))}). Run `simcluster {command}` again."
        ) from None


def _json(path: Path) -> Mapping[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        text = printable(str(error))
        raise DataError(f"{printable(str(path))}: cannot be read ({text}).") from None
    if not isinstance(values, dict):
        raise DataError(f"{printable(str(path))}: is not what simcluster wrote.")
    return values


def write_report(folder: str | Path, out: str | Path) -> Path:
    """Write the report of a result folder as one HTML file.

    Parameters
    ----------
    folder : str or Path
        As in `page_of`.
    out : str or Path
        The file to write; an existing one is replaced.

    Raises
    ------
    DataError, ConfigError
        As in `page_of`, or if `out` cannot be written.
    """
    file = arguments.path("out", out, "Give the path of a file, such as report.html.")
    text = to_html(page_of(folder))
    try:
        output.write_whole(file, text)
    except OSError as error:
        raise DataError(
            f"{printable(str(file))}: cannot be written ({error.strerror}). Give another file "
            "with -o."
        ) from None
    return file
