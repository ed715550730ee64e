"""Run the notebooks of this folder, and keep what they show (``make notebooks``)."""

from pathlib import Path

import nbformat
from nbclient import NotebookClient

HERE = Path(__file__).parent

for path in sorted(HERE.glob("*.ipynb")):
    book = nbformat.read(path, as_version=4)
    where = {"metadata": {"path": str(HERE)}}
    # Times of a run are not results: without them the same results are the same file.
    NotebookClient(
        book, timeout=600, kernel_name="python3", resources=where, record_timing=False
    ).execute()
    for cell in book.cells:
        cell.metadata.pop("execution", None)
    # Where it ran is no result either.
    path.write_text(
        nbformat.writes(book).replace(f"{HERE.parents[1]}/", "") + "\n", encoding="utf-8"
    )
