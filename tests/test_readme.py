"""The README is short, and its links and those of all pages lead somewhere.

`tests/docs/test_pages.py` runs what they show.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from helpers.pages import GENERATED

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_it_is_short() -> None:
    """One and a half screens of a newcomer's time."""
    assert len(README.splitlines()) < 120


@pytest.mark.parametrize("page", sorted((ROOT / "docs").glob("*.md")), ids=lambda page: page.stem)
def test_links_of_the_documentation_lead_somewhere(page: Path) -> None:
    """Pages, pictures and scripts that a page names are there, or made with the site."""
    text = page.read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", text)
    there = [link for link in links if link in GENERATED or (page.parent / link).exists()]
    assert links == there


def test_links_lead_somewhere() -> None:
    """Every relative link is a file of the project."""
    links = re.findall(r"\]\(([^)#:]+)\)", README)
    assert links
    assert [link for link in links if not (ROOT / link).is_file()] == []
