"""Brings the tables and pictures of docs/accuracy.md up to date; its words are written by hand.

Run as ``python -m simcluster.fidelity.validate.document DATA_DIR DOCS_DIR --made "DATE, MACHINE"``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import click

from simcluster._version import __version__
from simcluster.errors import DataError
from simcluster.fidelity.validate import board, report
from simcluster.fidelity.validate.run import validate

_END: Final = "<!-- end -->"
_COMMAND: Final = (
    "`python -m simcluster.fidelity.validate.document DATA_DIR docs --made ...` "
    "(the tables of `simcluster validate DATA_DIR -o DIR`)"
)


@click.command()
@click.argument("data_dir", type=click.Path(path_type=Path))
@click.argument("docs_dir", type=click.Path(path_type=Path))
@click.option("--made", required=True, help="When and on which machine.")
def main(data_dir: Path, docs_dir: Path, made: str) -> None:
    """Rewrite the tables between the marks in DOCS_DIR/accuracy.md, and its two pictures."""
    page = docs_dir / "accuracy.md"
    words = page.read_text(encoding="utf-8")
    for name in ("kinds", "tables"):
        words = _with(words, name, "")  # no marks: said before the checks run
    result = validate(data_dir)
    origin = f"Version {__version__}, {made}, {_COMMAND}."
    words = _with(words, "kinds", f"{origin}\n\n{board.as_markdown(result.checks, result.rivals)}")
    words = _with(words, "tables", f"{origin}\n\n{report.as_markdown(result)}")
    page.write_text(words, encoding="utf-8")
    report.save(report.plot_parity, result, docs_dir / "img" / "accuracy_parity.png")
    report.save(report.plot_errors, result, docs_dir / "img" / "accuracy_errors.png")


def _with(words: str, name: str, table: str) -> str:
    """Return the page with `table` between its marks.

    Raises
    ------
    DataError
        If it has no such marks.
    """
    mark = f"<!-- made: {name} -->\n"
    before, found, rest = words.partition(mark)
    _, end, after = rest.partition(_END)
    if not found or not end:
        raise DataError(f"no marks {mark.strip()} ... {_END} to put tables between")
    return f"{before}{mark}\n{table.rstrip()}\n\n{end}{after}"


if __name__ == "__main__":
    main()
