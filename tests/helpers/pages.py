"""What pages show that a reader would run: commands, Python, files of TOML, JSON and CSV."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
GENERATED = ("cli.md", "entries.md", "api.md")
"""Made from the package when the site is built (``docs/generate.py``)."""

_BLOCK = re.compile(
    r"(?:^\*\*`(?P<file>[^`]+)`\*\*\n\n)?^```(?P<language>\w+)\n(?P<text>.*?)^```$"
    r"|^    (?P<line>[^ \n](?:[^\n\\]|\\\n|\\)*)$",
    re.DOTALL | re.MULTILINE,
)
_LINE = re.compile(r"^(?P<words>simcluster|python|make|pip) (?P<rest>[^#]*)")


@dataclass(frozen=True)
class Block:
    """One thing that a page shows."""

    kind: str
    """``"simcluster"``, ``"python"`` and so on for a command; the language of a fence else."""
    text: str
    file: str | None = None
    """Name in bold above a fence: the reader is to write it into this file."""

    @property
    def words(self) -> list[str]:
        """Words of a command after its first."""
        return shlex.split(self.text)


def pages() -> list[Path]:
    """Return the README and all pages that are written by hand."""
    return [ROOT / "README.md", *sorted(p for p in DOCS.glob("*.md") if p.name not in GENERATED)]


def blocks(page: Path) -> list[Block]:
    """Return the blocks of a page in order; texts for reading (fences of text) are left out."""
    found = []
    for match in _BLOCK.finditer(page.read_text(encoding="utf-8")):
        if match["line"] is None:
            if match["language"] not in ("text", "eval"):
                kind = "python-code" if match["language"] == "python" else match["language"]
                found.append(Block(kind, match["text"], match["file"]))
            continue
        command = _LINE.match(re.sub(r"\\\n +", "", match["line"]))
        if command is not None:
            found.append(Block(command["words"], command["rest"].strip()))
    return found
