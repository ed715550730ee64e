"""Packaged TOML files are parsed once, and again when they have changed."""

from __future__ import annotations

import os
import tomllib
from pathlib import Path

import pytest

import simcluster.catalog
from simcluster.catalog import parsed as module
from simcluster.catalog.parsed import parsed

FOLDER = Path(simcluster.catalog.__file__).parent


@pytest.mark.parametrize("file", sorted(FOLDER.glob("*.toml")), ids=lambda file: file.stem)
def test_bytecode_holds_what_the_file_says(file: Path, tmp_path: Path) -> None:
    """When it is made and when it is found, every entry is the one that tomllib reads."""
    expected = tomllib.loads(file.read_text("utf-8"))
    copy = tmp_path / file.name
    copy.write_bytes(file.read_bytes())
    assert parsed(copy) == expected
    assert parsed(copy) == expected


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a file, where bytecode is written."""
    monkeypatch.setattr("sys.dont_write_bytecode", False)
    file = tmp_path / "scores.toml"
    file.write_text("a = 1\n")
    return file


def test_a_file_is_parsed_once(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second time its bytecode does, which no module of the same name can take for its own."""
    assert parsed(file) == {"a": 1}
    assert [p.name.split(".")[0] for p in (file.parent / "__pycache__").iterdir()] == [
        "scores_toml"
    ]
    monkeypatch.delattr(module, "tomllib")
    assert parsed(file) == {"a": 1}


def test_a_changed_file_is_parsed_again(file: Path) -> None:
    """Of another size, or of another time."""
    assert parsed(file) == {"a": 1}
    file.write_text("a = 12\n")
    assert parsed(file) == {"a": 12}
    file.write_text("a = 34\n")
    os.utime(file, (1, 1))
    assert parsed(file) == {"a": 34}


def test_a_folder_that_cannot_be_written_is_read(file: Path) -> None:
    """As it is where an administrator has installed the package."""
    (file.parent / "__pycache__").write_text("no folder")
    assert parsed(file) == {"a": 1}


def test_no_two_calls_share_their_tables(file: Path) -> None:
    """Who changes what was read changes nothing for others."""
    parsed(file)["a"] = 2
    assert parsed(file) == {"a": 1}
