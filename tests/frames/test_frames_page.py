"""docs/frames.md is what the schema says, column by column."""

from __future__ import annotations

from pathlib import Path

from click.testing import CliRunner

from simcluster.cli import main
from simcluster.frames.schema import ABOUT, SCHEMAS, markdown

PAGE = Path(__file__).parents[2] / "docs" / "frames.md"


def test_the_page_is_made_from_the_schema() -> None:
    """Make it again with `simcluster schema --frames`."""
    text = PAGE.read_text(encoding="utf-8")
    assert text.partition("--frames` -->\n\n")[2] == markdown()
    assert CliRunner().invoke(main, ["schema", "--frames"]).stdout == markdown()


def test_every_column_of_every_frame_is_in_it() -> None:
    """With a meaning and, where it is a quantity, a unit."""
    text = PAGE.read_text(encoding="utf-8")
    assert set(ABOUT) == set(SCHEMAS)
    for name, schema in SCHEMAS.items():
        own = text.partition(f"## {name}\n")[2].partition("\n## ")[0]
        for column, one in schema.items():
            assert f"| `{column}` |" in own
            assert one.meaning
            assert one.unit or not column.endswith(("_s", "_bytes", "_rps"))
