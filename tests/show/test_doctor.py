"""The doctor sees what is there, and says what is not."""

from __future__ import annotations

import importlib.metadata
import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from simcluster.cli import main
from simcluster.show import doctor


def test_what_is_needed_is_what_the_package_declares() -> None:
    """The list is that of the installed package's requirements, extras apart."""
    lines = importlib.metadata.requires("simcluster") or []
    declared = {line.split(">")[0].strip() for line in lines if "extra ==" not in line}
    assert declared <= set(doctor._NEEDED)
    assert set(doctor._NEEDED) - declared <= {"jinja2"}  # an installation from before it


def test_a_working_installation_is_fine() -> None:
    """Exit status 0, every version is the installed one."""
    result = CliRunner().invoke(main, ["doctor", "--json"])
    assert result.exit_code == 0
    found = {one["what"]: one for one in json.loads(result.stdout)}
    assert found["simpy"]["words"] == importlib.metadata.version("simpy")
    assert "broken" not in {one["state"] for one in found.values()}
    assert "All that is needed works." in CliRunner().invoke(main, ["doctor"]).stdout


def test_what_is_broken_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A package that is gone and a folder that cannot be written: exit status 1."""
    monkeypatch.setattr(doctor, "_NEEDED", ("simpy", "no-such-package"))
    monkeypatch.setattr(doctor.tempfile, "gettempdir", lambda: str(tmp_path / "gone"))
    result = CliRunner().invoke(main, ["doctor"])
    assert result.exit_code == 1
    assert "Broken: no-such-package, temporary folder." in result.stdout


def test_data_are_looked_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Where SIMCLUSTER_DATA says."""
    monkeypatch.setenv("SIMCLUSTER_DATA", str(tmp_path))
    assert doctor._data().state == "ok"
    monkeypatch.setenv("SIMCLUSTER_DATA", str(tmp_path / "none"))
    assert doctor._data().state == "absent"


def test_the_build_is_what_the_version_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiled modules may lie there and not run."""
    words = "pure Python: SIMCLUSTER_PURE is set"
    monkeypatch.setattr("simcluster._compiled.why_not", lambda: "SIMCLUSTER_PURE is set")
    build = next(one for one in doctor.findings() if one.what == "build")
    assert build.words == words
    assert words in CliRunner().invoke(main, ["--version"]).stdout
