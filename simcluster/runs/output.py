"""Folders for results: refused before the work, their files written all or none."""

from __future__ import annotations

import contextlib
import os
import shutil
import uuid
from collections.abc import Collection, Iterator
from pathlib import Path

from simcluster.errors import DataError

_ADVICE = "Give another folder with -o."


def unwritable(out: Path, error: OSError) -> DataError:
    """Return the line that says why `out` cannot be written."""
    return DataError(f"{out}: cannot be written ({error.strerror or error}). {_ADVICE}")


def refuse_strangers(out: Path, own: Collection[str]) -> None:
    """Refuse a folder that holds anything but files called as ours are, or is none.

    Parameters
    ----------
    out : Path
        The folder; it need not exist.
    own : collection of str
        Names of ours.

    Raises
    ------
    DataError
        If so, or the folder cannot be read.
    """
    try:
        if not out.exists():
            return
        if not out.is_dir():
            raise DataError(f"{out}: is a file, not a folder. {_ADVICE}")
        names = sorted(entry.name for entry in out.iterdir())
    except OSError as error:
        raise unwritable(out, error) from None
    if strangers := [name for name in names if name not in own]:
        raise DataError(f"{out}: holds files that are not ours ({strangers[0]}). {_ADVICE}")


@contextlib.contextmanager
def folder(out: Path | None) -> Iterator[None]:
    """Make a folder before the work that is to fill it; if it stays empty it goes again.

    Parameters
    ----------
    out : Path or None
        The folder; None for no folder.

    Raises
    ------
    DataError
        If it cannot be made or written to.
    """
    if out is None:
        yield
        return
    missing = [place for place in (out, *out.parents) if not place.exists()]
    try:
        out.mkdir(parents=True, exist_ok=True)
        trial = out / f".{uuid.uuid4().hex[:8]}"
        trial.touch()
        trial.unlink()
    except OSError as error:
        raise unwritable(out, error) from None
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # it is not empty: what it was made for
            for place in missing:
                place.rmdir()


def put_in_place(out: Path, finished: Path) -> None:
    """Put a finished folder in the place of `out`, which stays until the new one is there."""
    old = out.with_name(f".{out.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if out.exists():
        out.rename(old)
    finished.rename(out)
    shutil.rmtree(old, ignore_errors=True)


def link(source: Path, target: Path) -> None:
    """Give a file a second name, by a hard link where the file system has them."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


@contextlib.contextmanager
def together(out: Path) -> Iterator[Path]:
    """Give a folder to write files to; they take their places in `out` at the end, or none does.

    Parameters
    ----------
    out : Path
        Where they go; it is made if it is not there.

    Yields
    ------
    Path
        A hidden sibling of `out`.

    Raises
    ------
    DataError
        If a file cannot be written.
    """
    place = Path(os.path.abspath(out))
    hidden = place.with_name(f".{place.name}.{uuid.uuid4().hex[:8]}")
    try:
        place.mkdir(parents=True, exist_ok=True)
        hidden.mkdir()
        yield hidden
        for file in sorted(hidden.iterdir()):
            file.replace(out / file.name)
    except OSError as error:
        raise unwritable(out, error) from None
    finally:
        shutil.rmtree(hidden, ignore_errors=True)
