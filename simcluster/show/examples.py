"""The scenarios and notebooks that come with the package: a list, and a copy to work with."""

from __future__ import annotations

import filecmp
import shutil
import textwrap
from pathlib import Path
from typing import Final

from simcluster.errors import DataError, printable

PACKAGED: Final = Path(__file__).resolve().parents[1] / "_examples"
"""Where an installation has them (``setup.py`` puts them there)."""
CHECKOUT: Final = Path(__file__).resolve().parents[2]
"""Where a checkout has them: at its top."""
FOLDERS: Final = ("scenarios", "plots", "examples/notebooks")
"""Folders that are copied, side by side as in a checkout: they name each other."""


def root() -> Path:
    """Return the folder that holds the examples.

    Raises
    ------
    DataError
        If this installation has none.
    """
    for place in (PACKAGED, CHECKOUT):
        if (place / "scenarios" / "first.toml").is_file():
            return place
    raise DataError("this installation has no examples: install it again, or take the checkout.")


def described() -> list[tuple[str, str]]:
    """Return the path of each scenario and notebook, and what its first lines say it is."""
    place = root()
    files = sorted(place.glob("scenarios/*.toml")) + sorted(
        place.glob("examples/notebooks/*.ipynb")
    )
    return [(file.relative_to(place).as_posix(), _about(file)) for file in files]


def _about(file: Path) -> str:
    """Return the first sentence of the comment at the top of a scenario."""
    if file.suffix == ".ipynb":
        return "a notebook, with its results"
    lines = []
    for line in file.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.removeprefix("#").strip())
    text = " ".join(lines)
    for end in (". ", "? "):
        head, found, _ = text.partition(end)
        text = head + found.strip()
    return textwrap.fill(text, 76, subsequent_indent="    ")


def copy(out: Path) -> list[Path]:
    """Copy the examples into the folder `out`, which is made; return the folders written.

    A folder that has them already, as at the top of a checkout, is left as it is.

    Raises
    ------
    DataError
        If one of them is there with other contents, or cannot be written.
    """
    place = root()
    wanted = [name for name in FOLDERS if (place / name).is_dir()]
    wanted = [name for name in wanted if not _has(out / name, place / name)]
    for name in wanted:
        if (out / name).exists():
            where = printable(str(out / name))
            raise DataError(
                f"{where}: exists, and differs from the examples. Give another folder: simcluster "
                "examples copy DIR."
            )
    try:
        for name in wanted:
            skipped = shutil.ignore_patterns("__pycache__", "*.pyc", ".ipynb_checkpoints")
            shutil.copytree(place / name, out / name, ignore=skipped)
    except OSError as error:
        where = printable(str(error.filename or out))
        raise DataError(
            f"{where}: cannot be written ({error.strerror}). Give another folder: simcluster "
            "examples copy DIR."
        ) from None
    return [out / name for name in wanted]


def _has(folder: Path, examples: Path) -> bool:
    """Whether a folder holds every file of some examples, unchanged."""
    files = [
        file.relative_to(examples)
        for file in examples.rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    ]
    return all(
        (folder / file).is_file() and filecmp.cmp(folder / file, examples / file, shallow=False)
        for file in files
    )
