"""Extension modules; all else about the package stands in setup.cfg.

pip install .                         pure Python
SIMCLUSTER_COMPILE=1 pip install .    compiles the modules of simcluster/_compiled.py with mypyc
"""

from __future__ import annotations

import os
import runpy
import shutil
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent
COMPILED = runpy.run_path(str(ROOT / "simcluster" / "_compiled.py"))
REQUIRED = ["mypy[mypyc]>=1.15,<3", "simpy>=4.1", "numpy>=1.26"]
"""What compiling needs beside setuptools: SimPy and NumPy for their types."""


def extensions() -> list[Extension]:
    """Return the extension modules, their C sources made by mypyc; none where nothing is built."""
    if not {"build_ext", "bdist_wheel", "build", "install", "editable_wheel"} & set(sys.argv):
        return []  # names and versions are asked for
    from mypyc.build import mypycify

    os.chdir(ROOT)
    files = [str(Path("simcluster", *name.split("."))) + ".py" for name in COMPILED["MODULES"]]
    return list(
        mypycify(
            ["--config-file", "mypyc.ini", *files],
            opt_level="3",
            debug_level="0",
            group_name="simcluster._native",
            target_dir="build/mypyc",
        )
    )


class BuildWithRecord(build_ext):
    """Builds the extension modules, and writes down what they were compiled from."""

    def run(self) -> None:
        """Build, then write."""
        super().run()
        root = ROOT / "simcluster"
        folder = root if self.inplace else Path(self.build_lib, "simcluster")
        COMPILED["write_record"](folder, root)


class BuildWithExamples(build_py):
    """Puts the examples into the package, for ``simcluster examples``.

    A checkout, and an editable installation of it, has them at its top.
    """

    def run(self) -> None:
        """Build, then copy."""
        super().run()
        if getattr(self, "editable_mode", False):
            return
        for name in ("scenarios", "plots", "examples/notebooks"):
            if (ROOT / name).is_dir():
                target = Path(self.build_lib, "simcluster", "_examples", name)
                shutil.rmtree(target, ignore_errors=True)
                skipped = shutil.ignore_patterns("__pycache__", "*.pyc", ".ipynb_checkpoints")
                shutil.copytree(ROOT / name, target, ignore=skipped)


if os.environ.get("SIMCLUSTER_COMPILE", "0") in ("", "0"):
    setup(cmdclass={"build_py": BuildWithExamples})
else:
    setup(
        setup_requires=REQUIRED,
        ext_modules=extensions(),
        cmdclass={"build_ext": BuildWithRecord, "build_py": BuildWithExamples},
    )
