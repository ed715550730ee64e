"""Folders for results: refused before the work, their files written all or none."""

from __future__ import annotations

import contextlib
import os
import shutil
import uuid
from collections.abc import Collection, Iterator
from pathlib import Path

from simcluster.errors import DataError, printable

_ADVICE = "Give another folder with -o."


def unwritable(out: Path, error: OSError) -> DataError:
    """Return the line that says why `out` cannot be written."""
    return DataError(f"{out}: cannot be written ({error.strerror or error}). {_ADVICE}")


def refuse_strangers(out: Path, own: Collection[str]) -> None:
    """Refuse a folder that holds anything but files called as ours are, or is none.

    Raises
    ------
    DataError
        If so, or the folder cannot be read.
    """
    try:
        str(out).encode()
    except UnicodeEncodeError:
        raise DataError(f"{out}: its name is not UTF-8. {_ADVICE}") from None
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


def _partial(out: Path) -> Path:
    """Return the hidden folder in which the results of `out` are made."""
    return out.with_name(f".{out.name}.partial")


def interrupted(out: Path) -> str:
    """Return in words that the results of `out` are there, but not finished; nothing if not."""
    place = _partial(Path(os.path.abspath(out)))
    if not out.name or out.exists() or not place.is_dir():
        return ""
    found = [*place.glob("runs/*.json"), *place.glob("cells/[!.]*")]
    runs = "1 finished run is" if len(found) == 1 else f"{len(found)} finished runs are"
    return (
        f"{printable(str(out))}: is not finished. An interrupted command was writing it; {runs} "
        f"kept in {printable(place.name)} beside it. Call that command again, into the same "
        "folder: it resumes."
    )


@contextlib.contextmanager
def partial(out: Path, work: str) -> Iterator[Path]:
    """Give the hidden folder beside `out` in which its results are made, to this process alone.

    Whatever ends the block, the folder stays if there are runs in it.

    Raises
    ------
    DataError
        If another process is writing to `out`, or nobody can.
    """
    place = _partial(out)
    missing = [above for above in place.parents if not above.exists()]
    try:
        with _held(place, out):
            try:
                yield place
            finally:
                if not any((place / work).glob("[!.]*")):
                    shutil.rmtree(place, ignore_errors=True)
                with contextlib.suppress(OSError):  # not empty: the results are in it
                    for above in missing:
                        above.rmdir()
    except OSError as error:
        raise unwritable(out, error) from None


@contextlib.contextmanager
def _held(place: Path, out: Path) -> Iterator[None]:
    """Make a folder and hold it for this process: the system lets go of it when that ends."""
    try:
        import fcntl
    except ImportError:  # Windows: nothing tells of another process there
        place.mkdir(parents=True, exist_ok=True)
        yield
        return
    while True:
        place.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as stack:
            held = os.open(place, os.O_RDONLY)
            stack.callback(os.close, held)
            try:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise DataError(
                    f"{out}: another process is writing to it. Wait for it to end, or give "
                    "another folder with -o."
                ) from None
            except OSError:
                pass  # a file system without locks on folders, such as NFS
            if place.exists() and os.path.samestat(os.fstat(held), place.stat()):
                yield
                return
            # That process has ended just now and put the folder in its place.


def write_whole(path: Path, text: str) -> None:
    """Write a file so that whoever looks finds all of it or none; its folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        unfinished.write_text(text, encoding="utf-8")
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def put_in_place(out: Path, finished: Path) -> None:
    """Put a finished folder in the place of `out`, which stays until the new one is there."""
    old = out.with_name(f".{out.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if out.exists():
        out.rename(old)
    finished.rename(out)
    shutil.rmtree(old, ignore_errors=True)


def remove(path: Path) -> None:
    """Delete a file or a folder, if there is one."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def clear(folder: Path) -> None:
    """Delete what is in a folder."""
    for path in folder.iterdir():
        remove(path)


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
