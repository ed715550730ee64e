"""The CSV of measured times; the file is whole at every moment, also after Ctrl-C."""

from __future__ import annotations

import csv
import io
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Final

from simcluster.catalog.own_file import write_whole
from simcluster.fidelity.measure.plan import Call
from simcluster.units import US

COLUMNS: Final = (*(f.name for f in fields(Call)), "time_us")
"""Columns of the file; ``docs/calibration.md`` says what they mean."""

_WRITE_EVERY_S: Final = 5.0


@dataclass(slots=True)
class Record:
    """Rows that were measured so far, and the file that holds them."""

    path: Path
    """The file; written anew, whole, every few seconds."""
    comments: list[str]
    """Lines about machine and run that stand before the header line."""
    rows: list[tuple[Call, float]] = field(default_factory=list)
    """Calls and their times (s)."""
    _written: float = field(default_factory=time.monotonic)

    def add(self, call: Call, time_s: float) -> None:
        """Add one row; the file follows within seconds."""
        self.rows.append((call, time_s))
        if time.monotonic() - self._written > _WRITE_EVERY_S:
            self.write()

    def write(self, *more: str) -> None:
        """Write the file as it stands, with `more` comment lines.

        Raises
        ------
        DataError
            If it cannot be written.
        """
        write_whole(self.path, as_csv(self.rows, [*self.comments, *more]))
        self._written = time.monotonic()


def as_csv(rows: Sequence[tuple[Call, float]], comments: Sequence[str]) -> str:
    """Return calls and times (s) as text, comment lines first, rows sorted by call."""
    text = io.StringIO()
    for comment in comments:
        text.write("# " + " ".join(comment.split()) + "\n")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    lines = [_cells(call, time_s) for call, time_s in rows]
    for line in sorted(lines, key=lambda cells: [(isinstance(c, str), c) for c in cells[:-1]]):
        writer.writerow("" if cell == -1 else cell for cell in line)
    return text.getvalue()


def _cells(call: Call, time_s: float) -> list[str | int]:
    """Return the cells of one row, -1 for an empty one."""
    cells = [getattr(call, name) for name in COLUMNS[:-1]]
    return [*(-1 if cell is None else cell for cell in cells), f"{time_s / US:.4g}"]
