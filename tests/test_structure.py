"""The figures of ``benchmarks/structure.py`` on a package that can be counted by hand."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / "benchmarks" / "structure.py"

structure = SimpleNamespace(**runpy.run_path(str(SCRIPT)))

FILES = {
    "simcluster/__init__.py": "from simcluster.other import late\n",
    "simcluster/alone.py": '''"""A module at the top."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from simcluster.other import late


class Thing:
    """Three lines, of which one is text."""
    size = 1
''',
    "simcluster/other.py": '''from simcluster import alone


def late(values):
    """Text
    of two lines.
    """
    import simcluster.folder.deep

    for value in values if values else []:
        if value and value > 1 or value < 0:
            assert all(v for v in value)
''',
    "simcluster/folder/__init__.py": "",
    "simcluster/folder/one.py": """import importlib

x = importlib.import_module("simcluster.other")
""",
    "simcluster/folder/two.py": "from simcluster.folder import one\n",
    "simcluster/folder/deep/__init__.py": "from simcluster.folder.one import x\n",
    "simcluster/request.py": "a = 1\nb = 2\n",
}


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A folder with the files above."""
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def test_arrows_and_cycles_of_a_small_package(checkout: Path) -> None:
    """Late imports and import_module count; imports inside a room and for types do not."""
    package = structure.sources(checkout, "simcluster")
    room = {source.module: structure.room_of(source) for source in package}
    links = list(structure.imports(package, for_types=False))
    arrows = structure.arrows(links, room.__getitem__)
    short = {tuple(name.removeprefix("simcluster.") for name in arrow) for arrow in arrows}
    assert short == {
        ("simcluster", "other"),
        ("other", "alone"),
        ("other", "simcluster"),  # from simcluster import alone
        ("other", "folder.deep"),
        ("folder", "other"),
        ("folder.deep", "folder"),
    }
    assert structure.cycles(arrows) == [
        ["simcluster.folder", "simcluster.folder.deep", "simcluster.other"]
    ]
    with_types = structure.arrows(structure.imports(package, for_types=True), room.__getitem__)
    assert with_types - arrows == {("simcluster.alone", "simcluster.other")}


def test_branches_and_lines_of_a_function(checkout: Path) -> None:
    """One, a loop, a conditional expression, an if, an and, an or, an assert, a comprehension."""
    functions, classes = structure.parts(structure.sources(checkout, "simcluster"))
    (late,) = functions
    assert (late.name, late.num_branches, late.loop_branches) == ("simcluster.other.late", 8, 7)
    assert late.num_lines == 6  # of nine, three are text
    assert [(part.name, part.num_lines) for part in classes] == [("simcluster.alone.Thing", 3)]


BODY = """def {name}({a}, {b}):
    {c} = {a} + {b}
    # a comment, and a blank line

    if {c} > {number}:
        {d}({c}, "{text}")
    while {a}:
        {a} = {d}({b})
    return {c}
"""
NAMES = dict(name="f", a="x", b="y", c="z", d="print", number=1, text="one")
RENAMED = dict(name="g", a="left", b="right", c="sum_s", d="log", number=20, text="two")


def _pairs(*texts: str) -> set[tuple[int, int]]:
    files = [structure.code_lines(structure.Source(Path("a.py"), text)) for text in texts]
    found: set[tuple[int, int]] = structure.pairs(files)
    return found


def test_a_renamed_copy_is_a_pair_and_a_different_function_is_not() -> None:
    """Other names, strings, numbers and comments; but one name for one name."""
    first = BODY.format(**NAMES)
    copy = BODY.format(**RENAMED).replace("# a comment, and a blank line", "# another")
    assert _pairs(first, copy) == {(0, 1)}
    assert _pairs(first + copy) == {(0, 0)}
    assert _pairs(first, copy.replace("while left", "while right")) == set()
    assert _pairs(first, copy.replace("+", "-")) == set()


def test_lists_imports_docstrings_and_common_runs_are_no_pairs() -> None:
    """Entries of the same shape are a pair only where they are the same text."""
    entries = "".join(f"name_{k} = {k}\n" for k in range(8))
    others = "".join(f"other_{k} = {k + 9}\n" for k in range(8))
    assert _pairs(entries, others) == set()
    assert _pairs(entries, entries) == {(0, 1)}
    imports = "".join(f"import module_{k}\n" for k in range(8))
    assert _pairs(imports, imports) == set()
    # Five lines of code, of at least three shapes, around a text.
    text = BODY.format(**NAMES).replace("# a comment, and a blank line", '"""Text."""')
    text = text[: text.index("    while")] + "    return z\n"
    assert _pairs(text, text) == set()
    copies = [BODY.format(**NAMES)] * 9
    assert len(_pairs(*copies[:8])) == 8 * 7 / 2
    assert _pairs(*copies) == set()


def test_the_files_of_a_nodg_run_are_where_the_script_says() -> None:
    """Who moves a module edits the list, or the figure cannot be said."""
    num_lines, remark = structure.nodg_run(ROOT)
    assert num_lines is not None, remark
    assert num_lines > 1000


def test_the_table_and_its_json_say_the_same(checkout: Path) -> None:
    """A figure that cannot be said is a question mark and null, with the reason."""
    command = [sys.executable, str(SCRIPT), "--root", str(checkout)]
    table = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = json.loads(subprocess.check_output([*command, "--json"]))
    assert found["entries at the top"] == {"value": 5, "remark": "4 modules, 1 folders"}
    assert found["lines to read for one NoDG run"]["value"] is None
    for line, (what, figure) in zip(table.splitlines(), found.items(), strict=True):
        shown = "?" if figure["value"] is None else f"{figure['value']:,}"
        assert line.split() == [*what.split(), shown, *figure["remark"].split()]
    other = [*command[:-1], str(checkout / "tests")]
    refused = subprocess.run(other, capture_output=True, text=True, check=False)
    assert refused.returncode == 1
    assert "has no folder simcluster" in refused.stderr
