"""Brings the tables and pictures of docs/accuracy.md up to date; its words are written by hand.

Run as ``python -m simcluster.fidelity.validate.document DATA_DIR DOCS_DIR --made "DATE, MACHINE"``.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

import click

from simcluster._version import __version__
from simcluster.errors import DataError
from simcluster.fidelity.validate import report
from simcluster.fidelity.validate.run import validate

_TABLES: Final = re.compile(r"(?<=<!-- made: tables -->\n).*(?=<!-- end -->)", re.DOTALL)


@click.command()
@click.argument("data_dir", type=click.Path(path_type=Path))
@click.argument("docs_dir", type=click.Path(path_type=Path))
@click.option("--made", required=True, help="When and on which machine.")
def main(data_dir: Path, docs_dir: Path, made: str) -> None:
    """Rewrite the tables between the marks in DOCS_DIR/accuracy.md, and its two pictures."""
    page = docs_dir / "accuracy.md"
    words = page.read_text(encoding="utf-8")
    if not _TABLES.search(words):
        raise DataError(f"{page}: no marks to put the tables between")
    result = validate(data_dir)
    tables = f"\nVersion {__version__}, {made}.\n\n{report.as_markdown(result)}\n"
    page.write_text(_TABLES.sub(lambda _: tables, words), encoding="utf-8")
    report.save(report.plot_parity, result, docs_dir / "img" / "accuracy_parity.png")
    report.save(report.plot_errors, result, docs_dir / "img" / "accuracy_errors.png")


if __name__ == "__main__":
    main()
