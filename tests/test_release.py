"""What a release says of itself agrees: version, changelog, citation, package data."""

from __future__ import annotations

import configparser
import re
from pathlib import Path

import simcluster

ROOT = Path(__file__).parents[1]


def test_the_version_is_the_same_everywhere() -> None:
    """The first release of the changelog, and the citation."""
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    releases = re.findall(r"^## (\d+\.\d+\.\d+)", changelog, re.MULTILINE)
    assert releases[0] == simcluster.__version__
    assert releases == sorted(set(releases), key=lambda v: [*map(int, v.split("."))], reverse=True)
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    keys = dict(re.findall(r"^([\w-]+): *(.*)$", citation, re.MULTILINE))
    assert keys["version"] == simcluster.__version__
    assert keys["license"] == "Apache-2.0"
    known = ("cff-version:", "message:", "title:", "type:", "authors:", "version:")
    lines = [line for line in citation.splitlines() if line and not line.startswith((" ", "-"))]
    assert all(re.match(r"[\w-]+:", line) for line in lines)
    assert all(any(line.startswith(key) for line in lines) for key in known)


def test_extras_that_documents_name_exist() -> None:
    """``simcluster[...]`` in any page, the README and CONTRIBUTING."""
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    extras = set(setup["options.extras_require"])
    pages = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]
    named = {
        name
        for page in pages
        for names in re.findall(r"simcluster\[([\w,]+)\]", page.read_text(encoding="utf-8"))
        for name in names.split(",")
    }
    assert {"docs", "notebooks", "release"} <= extras
    assert named <= extras


def test_what_is_left_out_of_the_source_distribution_is_made_by_a_command() -> None:
    """Generated pages; all folders that tests and pages name are in it."""
    manifest = (ROOT / "MANIFEST.in").read_text(encoding="utf-8")
    for folder in ("docs", "scenarios", "examples", "plots", "tests", "benchmarks"):
        assert f"graft {folder}\n" in manifest
    assert "CHANGELOG.md" in manifest
