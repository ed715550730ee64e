"""The notebooks in `examples/notebooks` run as they stand, and are committed with their outputs."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "examples" / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))


def test_there_are_three() -> None:
    """A first answer, a trace of your own, a strategy of your own."""
    assert [one.stem for one in NOTEBOOKS] == ["first_answer", "own_strategy", "own_trace"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_small_and_executed(path: Path) -> None:
    """Every cell of code has run, in order, without an error; the file is under 200 kB."""
    assert path.stat().st_size < 200_000
    cells = [c for c in json.loads(path.read_text())["cells"] if c["cell_type"] == "code"]
    assert [c["execution_count"] for c in cells] == list(range(1, len(cells) + 1))
    assert not [o for c in cells for o in c["outputs"] if o["output_type"] == "error"]
    shown = json.dumps([c["outputs"] for c in cells])
    assert "trace /" not in shown, "a path of the machine that ran it: `make notebooks`"
    assert any("text/html" in o.get("data", {}) for c in cells for o in c["outputs"])


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path: Path) -> None:
    """In a kernel, from its folder; an error in a cell fails."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the kernel's own libraries
        nbformat = pytest.importorskip("nbformat")
        client = pytest.importorskip("nbclient")
        pytest.importorskip("ipykernel")
        book = nbformat.read(path, as_version=4)
        resources = {"metadata": {"path": str(FOLDER)}}
        client.NotebookClient(
            book, timeout=600, kernel_name="python3", resources=resources
        ).execute()
    tables = [
        o for c in book.cells for o in c.get("outputs", []) if "text/html" in o.get("data", {})
    ]
    assert tables
