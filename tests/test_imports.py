"""The layers of the design: a module imports from its own layer or a lower one."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import simcluster

PACKAGE = Path(simcluster.__file__).parent

LAYERS = {
    0: {"_version", "arguments", "errors", "units", "rng", "schema"},
    1: {"specs", "config", "request", "registry"},
    2: {"catalog", "roofline", "workload", "kvcache", "sched", "routing", "quality"},
    3: {"engine", "strategies", "scenario", "simulate"},
    4: {
        "catalog_file",
        "accuracy",
        "calibration",
        "cell_store",
        "executor",
        "goodput",
        "goodput_search",
        "measure",
        "metrics",
        "output",
        "planner",
        "plot",
        "plot_links",
        "plot_timeline",
        "pools",
        "report",
        "scenario_file",
        "scenario_tables",
        "store",
        "sweep",
        "timeline",
        "toml_writer",
        "unroll",
        "validation",
    },
    5: {"cli", "__main__", "testing", ""},
}
"""Modules and subpackages by layer; ``""`` is the package's own ``__init__``."""

LAYER = {name: layer for layer, names in LAYERS.items() for name in names}
FAMILIES = {
    "catalog": set(),
    "roofline": {"catalog"},
    "workload": {"catalog"},
    "quality": {"catalog"},
}
"""Of layer 2, what these may import of layer 2."""
SIMPY = {"engine", "simulate"}
"""Where time passes: the only importers of SimPy."""
LATE = {"pandas", "pyarrow", "joblib", "scipy", "torch", "optuna", "distributed"}
"""Packages that are imported inside the functions that need them."""


def modules() -> list[tuple[str, Path]]:
    """Return the top-level name (module or subpackage) and the file of every module."""
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        first = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        found.append(("" if first == "__init__" else first, path))
    return found


def imports(path: Path, *, top_only: bool = False) -> Iterator[str]:
    """Give the dotted names that a file imports, those for type checkers left out."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    typing_only = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for inner in ast.walk(node)
    }
    for node in tree.body if top_only else ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            module = node.module or ""
            if module == "simcluster":
                yield from (f"simcluster.{alias.name}" for alias in node.names)
            else:
                yield module


def own_imports(path: Path) -> set[str]:
    """Top-level names of simcluster that a file imports."""
    return {name.split(".")[1] for name in imports(path) if name.startswith("simcluster.")}


def test_every_module_has_a_layer() -> None:
    """A new module is placed on purpose."""
    assert {name for name, _ in modules()} <= set(LAYER)


@pytest.mark.parametrize(("name", "path"), modules(), ids=[str(p.name) for _, p in modules()])
def test_imports_point_down(name: str, path: Path) -> None:
    """A module imports from its own or a lower layer only."""
    above = {other for other in own_imports(path) if LAYER[other] > LAYER[name]}
    assert not above
    if name in FAMILIES:
        beside = {other for other in own_imports(path) if LAYER[other] == LAYER[name]}
        assert beside - {name} <= FAMILIES[name]


def test_simpy_is_imported_where_time_passes() -> None:
    """Everything else can be tested without a clock."""
    found = {
        name for name, path in modules() if "simpy" in {m.split(".")[0] for m in imports(path)}
    }
    assert found <= SIMPY


def test_heavy_packages_are_imported_late() -> None:
    """Importing the package stays fast: no module imports them when it is loaded."""
    early = {
        name: {m.split(".")[0] for m in imports(path, top_only=True)} for name, path in modules()
    }
    assert not [name for name, packages in early.items() if packages & LATE]
    pictures = [name for name, packages in early.items() if "matplotlib" in packages]
    assert pictures == ["plot", "plot_links", "plot_timeline"]


def test_frames_are_known_by_their_schema_alone() -> None:
    """Numbers and pictures can be made of any frame, from wherever it comes."""
    for name in ("metrics", "goodput", "plot", "plot_links", "plot_timeline"):
        known = own_imports(PACKAGE / f"{name}.py")
        assert not known & {"simulate", "engine", "strategies", "store", "sweep", "scenario_file"}


def test_importing_the_package_loads_nothing_heavy() -> None:
    """What makes the import slow stays out; how long it takes stands in benchmarks/RESULTS.md."""
    code = f"import simcluster, sys; print(sorted({LATE | {'matplotlib'}!r} & set(sys.modules)))"
    command = [sys.executable, "-c", code]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
