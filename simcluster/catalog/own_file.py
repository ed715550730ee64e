"""Entries of the user's own, written into a catalogue file."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from pathlib import Path

from simcluster.catalog.toml_writer import to_toml
from simcluster.errors import ConfigError, DataError


def entry_text(table: str, row: Mapping[str, object]) -> str:
    """Return one entry as it stands in a catalogue file, such as ``[[model]]``."""
    return f"[[{table}]]\n{to_toml(row)}"


def add_entry(path: Path, table: str, row: Mapping[str, object]) -> None:
    """Write an entry to the end of a catalogue file; make the file where there is none.

    Parameters
    ----------
    path : Path
        The file; what it holds stays as it is, comments too.
    table : str
        Table of the catalogue, such as ``"model"``.
    row : mapping of str to object
        The entry, with its ``name``.

    Raises
    ------
    ConfigError
        If the file has an entry of that name in that table.
    DataError
        If the file cannot be read or written, or is not TOML.
    """
    try:
        text = path.read_text("utf-8") if path.exists() else ""
        entries = tomllib.loads(text).get(table, [])
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: is not TOML ({error})") from None
    if not isinstance(entries, list):
        raise DataError(f"{path}: {table} is not a list of tables. Write [[{table}]].")
    if any(isinstance(other, dict) and other.get("name") == row["name"] for other in entries):
        rule = f"is the name of an entry of {path} already"
        remedy = "Take it out there, write to another file, or give another name with --name."
        raise ConfigError(f"{table}.name", row["name"], rule, remedy)
    before = text.rstrip("\n") + "\n\n" if text.strip() else ""
    write_whole(path, before + entry_text(table, row))


def write_whole(path: Path, text: str) -> None:
    """Write a text file whole or not at all.

    Raises
    ------
    DataError
        If it cannot be written.
    """
    partial = path.with_name(path.name + ".part")
    try:
        partial.write_text(text, "utf-8")
        os.replace(partial, path)
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error.strerror or error})") from None
