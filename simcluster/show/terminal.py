"""What the terminal allows and the user asked for: width of tables, silence, signs of life."""

from __future__ import annotations

import contextlib
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Final, TextIO

TABLE_WIDTH: Final = 80
"""Most characters of a line of a table where the width of the terminal is not known."""
WIDE: Final = ContextVar("WIDE", default=False)
"""Whether tables are printed whole, however wide (``--wide``)."""
QUIET: Final = ContextVar("QUIET", default=False)
"""Whether progress and warnings are left out (``--quiet``)."""
FROM_S: Final = 2.0
"""What takes longer than this shows how far it is (s)."""


def table_width() -> int | None:
    """Return the most characters of a line of a table; None for any number.

    That of the terminal, or 80 where output goes to a file or a pipe.
    """
    if WIDE.get():
        return None
    if sys.stdout.isatty():
        return max(40, shutil.get_terminal_size((TABLE_WIDTH, 24)).columns)
    return TABLE_WIDTH


@contextlib.contextmanager
def signs_of_life(
    label: str,
    share: Callable[[], float | None] = lambda: None,
    *,
    stream: TextIO | None = None,
    after_s: float = FROM_S,
    every_s: float = 0.5,
) -> Iterator[None]:
    """Say on standard error every half second that work continues, and how far it is.

    Nothing is said where nobody reads it (no terminal, ``--quiet``), of what is quick, or once the
    block has ended: the line is wiped.

    Parameters
    ----------
    label : str
        What is being done.
    share : callable
        How far it is, 0 to 1; None where nobody knows.
    stream : file, optional
        Where to write; default: standard error.
    after_s, every_s : float
        When the first sign comes, and how often (s).
    """
    out = sys.stderr if stream is None else stream
    if QUIET.get() or not out.isatty():
        yield
        return
    ended = threading.Event()
    began = time.monotonic()

    def show() -> None:
        width = 0
        if ended.wait(after_s):
            return
        while True:
            line = _line(label, time.monotonic() - began, share())
            out.write("\r" + line.ljust(width))
            out.flush()
            width = len(line)
            if ended.wait(every_s):
                out.write("\r" + " " * width + "\r")
                out.flush()
                return

    thread = threading.Thread(target=show, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _line(label: str, passed_s: float, share: float | None) -> str:
    """Return a sign of life.

    >>> _line("simulating", 30.0, 0.25), _line("drawing", 3.2, None)
    ('simulating: 25 %, 30 s, about 90 s left', 'drawing: 3 s')
    """
    if not share:
        return f"{label}: {passed_s:.0f} s"
    left_s = passed_s * (1 / share - 1)
    return f"{label}: {share:.0%}, {passed_s:.0f} s, about {left_s:.0f} s left".replace("%", " %")
