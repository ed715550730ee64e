"""What the terminal allows and the user asked for: width of tables, silence, signs of life."""

from __future__ import annotations

import contextlib
import re
import shutil
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Final, TextIO

TABLE_WIDTH: Final = 80
"""Most characters of a line of a table where the width of the terminal is not known."""
_TEXT_WIDTH: Final = 100
"""Most characters of a line of text, however wide the terminal is: longer ones read badly."""
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


def text_width() -> int:
    """Return the most characters of a line of text: of a table, but no more than 100."""
    return min(_TEXT_WIDTH, table_width() or _TEXT_WIDTH)


def filled(text: str, indent: str = "  ", first: str = "") -> str:
    """Return a paragraph in lines that are not too long; words are not cut.

    Parameters
    ----------
    text : str
        The paragraph.
    indent, first : str
        What stands before each further line, and before the first.
    """
    # A command to copy stays in one line, and so does a number with its "%".
    whole = re.sub(r"`[^`]*`|\d %", lambda found: found[0].replace(" ", "\0"), text)
    return textwrap.fill(
        whole,
        text_width(),
        initial_indent=first,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    ).replace("\0", " ")


def fitted(text: str, indent: str = "  ") -> str:
    """Return lines of text, those that are too long in several; no table.

    Parameters
    ----------
    text : str
        The lines.
    indent : str
        What the further lines of one have more than that.
    """
    lines = []
    for line in text.split("\n"):
        own = line[: len(line) - len(line.lstrip())]
        if len(line) <= text_width() or "   " in line.strip() or "--------" in line:
            lines.append(line)  # short, or of a table
        else:
            lines.append(filled(line.lstrip(), own + indent, own))
    return "\n".join(lines)


def hanging(name: str, words: str) -> str:
    """Return words beside a name, in several lines below each other if they are too long."""
    most = table_width()
    if most is None or len(name) + len(words) <= most:
        return name + words
    return filled(words, " " * min(len(name), most // 2), name)


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
