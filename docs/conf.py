"""Sphinx: how the documentation site is made (`make docs`)."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

import generate  # noqa: E402  # it stands beside this file

from simcluster import __version__  # noqa: E402

project = "simcluster"
release = version = __version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
source_suffix = {".md": "markdown"}
myst_heading_anchors = 4
html_theme = "furo"
html_title = f"simcluster {release}"
html_copy_source = False
nitpicky = False
"""Types in docstrings are written for people ("array of shape (n,)"), and are no references."""

napoleon_google_docstring = False
napoleon_use_rtype = False
autodoc_typehints = "none"
autodoc_member_order = "bysource"

suppress_warnings = ["ref.python"]
"""Attributes of two classes have the same name where napoleon makes a reference of it."""

OUTSIDE = {
    "../benchmarks/RESULTS.md": "speed.md",
    "../CHANGELOG.md": "changelog.md",
    "../README.md": "index.md",
    "../examples/plugin/": "../examples/plugin/pyproject.toml",
}
"""Files of the repository that pages name, and what stands for them on the site."""


def on_the_site(_: Any, __: str, source: list[str]) -> None:
    """Lead links to files of the repository to their page."""
    for file, page in OUTSIDE.items():
        source[0] = (
            source[0].replace(f"]({file})", f"]({page})").replace(f"]({file}#", f"]({page}#")
        )
    source[0] = source[0].replace("```csv\n", "```text\n")  # no lexer knows CSV


def setup(app: Any) -> None:
    """Write the generated pages first."""
    generate.write_all(HERE)
    app.connect("source-read", on_the_site)
