"""Recognise a result folder and write its report."""

from __future__ import annotations

from pathlib import Path

from simcluster.errors import DataError, printable
from simcluster.report.kinds import read_study, whole, with_scenario
from simcluster.report.page import Page, to_html
from simcluster.runs import folder as store
from simcluster.runs import output
from simcluster.scenario import arguments


def page_of(folder: str | Path) -> Page:
    """Return the report of a result folder.

    Parameters
    ----------
    folder : str or Path
        What `simcluster run`, `compare`, `goodput`, `rank`, `plan` or `cooptimize` wrote.

    Raises
    ------
    DataError
        If it is none of them, or a file of it is damaged or of another version.
    ConfigError
        If its scenario names what is no longer there.
    """
    place = arguments.path("folder", folder, "Give a folder that `-o` of a command wrote.")
    kind, file = with_scenario(place)
    if kind != "runs":
        return _of_study(kind, file)
    from simcluster.report import of_runs

    comparison = store.read(place)
    if not comparison.rows:
        raise DataError(f"{printable(str(place))}: holds no run. Write it again with -o.")
    return of_runs.page(comparison, place)


def _of_study(kind: str, file: Path) -> Page:
    from simcluster.report import of_cooptimize, of_goodput, of_rank

    pages = {"goodput": of_goodput.page, "rank": of_rank.page, "cooptimize": of_cooptimize.page}
    result = read_study(file)
    with whole(file):
        return pages[kind](result, file.parent)


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
