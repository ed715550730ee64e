"""Runs on disk are recognised by what made them."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import simcluster
from simcluster.runs.cell import program

CHANGE_ONE_BY_ONE = """
import sys
from pathlib import Path
import simcluster
from simcluster.runs.cell import program

print(program.__wrapped__())
for name in sys.argv[1:]:
    with (Path(simcluster.__file__).parent / name).open("a") as file:
        file.write("# changed\\n")
    print(program.__wrapped__())
"""


def test_the_digest_of_the_program_covers_the_whole_package(tmp_path: Path) -> None:
    """A change of any module or catalogue file makes another program, wherever it is installed."""
    package = Path(simcluster.__file__).parent
    shutil.copytree(package, tmp_path / "simcluster", ignore=shutil.ignore_patterns("__pycache__"))
    changed = ["errors.py", "runs/cell.py", "engine/clock.py", "catalog/gpus.toml"]
    done = subprocess.run(
        [sys.executable, "-c", CHANGE_ONE_BY_ONE, *changed],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    unchanged, *others = done.stdout.split()
    assert unchanged == program()
    assert len({unchanged, *others}) == 1 + len(changed)
