"""The order of the folders: a module imports only from folders that stand before its own."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator, Sequence
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import simcluster

PACKAGE = Path(simcluster.__file__).parent

ORDER = (
    "_compiled",
    "_version",
    "errors",
    "units",
    "rng",
    "request",
    "registry",
    "catalog",
    "config",
    "workload",
    "quality",
    "kvcache",
    "roofline",
    "frames",
    "routing",
    "sched",
    "engine",
    "strategies",
    "scenario",
    "runs",
    "show",
    "report",
    "studies",
    "fidelity",
    "testing",
    "ui",
    "",
    "cli",
    "__main__",
)
"""Modules and folders at the top of the package; ``""`` is its own ``__init__``.

Each may import from those before it, wherever the import stands.
"""

INSIDE = {
    "engine": (
        "clock",
        "log",
        "request_log",
        "recorder",
        "shape",
        "placement",
        "links",
        "instance",
        "groups",
    ),
    "studies": (
        "prefix_reuse",
        "trace_file",
        "space",
        "bestserve",
        "work",
        "goodput",
        "rank",
        "plan",
        "plan_command",
        "check",
        "cooptimize",
    ),
    "fidelity": ("measure", "calibrate", "validate"),
}
"""The order inside folders that have folders."""

KNOWN = {
    "catalog": set(),
    "workload": {"catalog"},
    "quality": {"catalog"},
    "kvcache": set(),
    "roofline": {"catalog", "kvcache"},
    "frames": {"catalog", "roofline"},
    "routing": set(),
    "sched": {"catalog", "kvcache", "roofline"},
}
"""Folders that may import from fewer folders than stand before them."""

SIMPY = ("engine.", "runs.simulate", "runs.source")
"""Where time passes: the only importers of SimPy."""
LATE = {"pandas", "pyarrow", "joblib", "scipy", "torch", "optuna", "distributed"}
"""Packages that are imported inside the functions that need them."""

Arrow = tuple[str, str]
"""From a module to what it imports, both without ``simcluster.``."""


def modules() -> dict[str, Path]:
    """Return the file of every module by its name, which is empty for the package itself."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


def without_types(tree: ast.Module) -> ast.Module:
    """Return a module without what it imports for type checkers alone."""
    body = [
        node
        for node in tree.body
        if not (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test))
    ]
    return ast.Module(body, [])


def imports(tree: ast.Module, *, top_only: bool = False) -> Iterator[str]:
    """Give the dotted names that a module imports, by a statement or by `importlib`.

    ``from a import b`` gives ``a.b``, which may be a module or a name in one. All of them count:
    inside functions, for type checkers, with a literal in ``importlib.import_module``.
    """
    for node in tree.body if top_only else ast.walk(tree):
        match node:
            case ast.Import():
                yield from (alias.name for alias in node.names)
            case ast.ImportFrom(level=0, module=str(module)):
                yield from (f"{module}.{alias.name}" for alias in node.names)
            case ast.ImportFrom():
                pytest.fail("relative import")
            case ast.Call(func=function, args=[ast.Constant(value=str(name)), *_]):
                if ast.unparse(function).rpartition(".")[2] in ("import_module", "__import__"):
                    yield name


def own_imports(tree: ast.Module, known: Sequence[str] = tuple(MODULES)) -> set[str]:
    """Return the modules of simcluster that a module imports; ``""`` for the package's face."""
    found = set()
    for name in imports(tree):
        first, *parts = name.split(".")
        if first != "simcluster":
            continue
        while parts and ".".join(parts) not in known:
            parts.pop()
        found.add(".".join(parts))
    return found


def place(name: str) -> tuple[int, int]:
    """Return where a module stands in the order: of the top, and inside its folder."""
    top, _, rest = name.partition(".")
    inside = INSIDE.get(top)
    if inside is None or not rest:
        return ORDER.index(top), -1
    return ORDER.index(top), inside.index(rest.partition(".")[0])


def wrong(arrows: Sequence[Arrow]) -> list[Arrow]:
    """Return the arrows that lead to what stands later in the order."""
    return [(source, target) for source, target in arrows if place(target) > place(source)]


def trees() -> dict[str, ast.Module]:
    """Return the syntax tree of every module."""
    return {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in MODULES.items()}


TREES = trees()


def test_every_module_has_a_place() -> None:
    """A new folder or module at the top is placed on purpose, and none is listed that is gone."""
    top = {name.partition(".")[0] for name in MODULES}
    assert top == set(ORDER)
    assert len(ORDER) == len(set(ORDER)) <= 29
    for folder, inside in INSIDE.items():
        there = {name.split(".")[1] for name in MODULES if name.startswith(f"{folder}.")}
        assert there <= set(inside)


@pytest.mark.parametrize("name", MODULES)
def test_a_module_imports_only_from_what_stands_before_it(name: str) -> None:
    """Its own folder is free; test_no_modules_import_each_other_in_a_circle looks inside."""
    assert not wrong([(name, target) for target in own_imports(TREES[name])])


@pytest.mark.parametrize("folder", KNOWN)
def test_some_folders_know_few_others(folder: str) -> None:
    """Decisions and formulas can be read, and tested, without the rest."""
    folders = {name.partition(".")[0] for name in MODULES if "." in name}
    known = {
        target.partition(".")[0]
        for name, tree in TREES.items()
        if name.partition(".")[0] == folder
        for target in own_imports(tree)
    }
    assert (known & folders) - {folder} <= KNOWN[folder]


@pytest.mark.parametrize(
    "source",
    [
        "from simcluster.engine.clock import Clock",
        "from simcluster.engine import clock",
        "import simcluster.engine.clock",
        "def f():\n    from simcluster.engine.clock import Clock",
        "if TYPE_CHECKING:\n    from simcluster.engine.clock import Clock",
        'importlib.import_module("simcluster.engine.clock")',
        '__import__("simcluster.engine.clock")',
    ],
)
def test_an_import_of_what_stands_later_is_seen_wherever_it_is_written(source: str) -> None:
    """The test above would fail for each of them in a scheduler, and for none in a strategy."""
    targets = own_imports(ast.parse(source))
    assert targets == {"engine.clock"}
    assert wrong([("sched.base", target) for target in targets]) == [("sched.base", "engine.clock")]
    assert not wrong([("strategies.nodg", target) for target in targets])


def test_the_face_of_the_package_is_for_users_alone() -> None:
    """Code inside that imports it would import nearly everything."""
    targets = own_imports(ast.parse("from simcluster import simulate"))
    assert wrong([("runs.compare", target) for target in targets])


def test_an_order_inside_a_folder_is_kept() -> None:
    """Instances know links, links no instances."""
    assert wrong([("engine.links.link", "engine.instance.instance")])
    assert not wrong([("engine.instance.instance", "engine.links.link")])


def cycle(arrows: Sequence[Arrow]) -> list[str]:
    """Return modules that import each other in a circle; none if there is no such circle."""
    graph: dict[str, set[str]] = {}
    for source, target in arrows:
        if source != target:
            graph.setdefault(source, set()).add(target)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def test_no_modules_import_each_other_in_a_circle() -> None:
    """Also not inside a folder, where the order says nothing; types may refer to each other there.

    A package's ``__init__`` counts for the names that it takes from its modules.
    """
    assert cycle([("a", "b"), ("b", "c"), ("c", "a")])
    assert not cycle([("a", "b"), ("b", "c"), ("a", "c")])
    loaded = {name: without_types(tree) for name, tree in TREES.items()}
    assert not cycle([(name, t) for name, tree in loaded.items() for t in own_imports(tree)])


def test_simpy_is_imported_where_time_passes() -> None:
    """Everything else can be tested without a clock."""
    found = [
        name
        for name, tree in TREES.items()
        if "simpy" in {imported.split(".")[0] for imported in imports(tree)}
    ]
    assert found
    assert not [name for name in found if not name.startswith(SIMPY)]


def test_heavy_packages_are_imported_late() -> None:
    """Importing the package stays fast: no module imports them when it is loaded."""
    early = {
        name: {imported.split(".")[0] for imported in imports(tree, top_only=True)}
        for name, tree in TREES.items()
    }
    assert not [name for name, packages in early.items() if packages & LATE]
    pictures = {name for name, packages in early.items() if "matplotlib" in packages}
    assert pictures
    assert all(name.startswith("show.plot") for name in pictures)


def test_pictures_know_frames_by_their_schema_alone() -> None:
    """They can be made of any frame, from wherever it comes."""
    drawers = [name for name in MODULES if name.startswith("show.plot")]
    assert drawers
    for name in drawers:
        known = {target.partition(".")[0] for target in own_imports(TREES[name])}
        assert known <= {"errors", "units", "config", "frames", "show"}


def loaded_by(code: str) -> set[str]:
    """Return the modules that a new interpreter has loaded after `code`."""
    code += "\nimport sys; print(chr(10), *sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(run.stdout.splitlines()[-1].split())


CALLED = "from simcluster.cli import main; main({args!r}, standalone_mode=False)"
SLOW = LATE | {"matplotlib", "numpy", "pydantic", "simpy"}
"""Packages without which the command line prints its help."""


@pytest.mark.parametrize("args", [["--help"], ["--version"], ["run", "--help"]], ids=" ".join)
def test_help_loads_nothing_heavy(args: list[str]) -> None:
    """It is there at once. Seconds stand in benchmarks/RESULTS.md, here is what they depend on."""
    loaded = loaded_by(CALLED.format(args=args))
    assert "click" in loaded
    assert not loaded & SLOW
    own = {name for name in loaded if name.startswith("simcluster.")}
    known = ("_compiled", "_version", "cli", "errors", "runs", "show")
    assert {name.split(".")[1] for name in own} <= set(known)


def test_importing_the_package_loads_nothing_heavy() -> None:
    """What makes the import slow stays out, also when its public names are used."""
    assert not loaded_by("import simcluster") & SLOW
    assert not loaded_by("from simcluster import *") & (LATE | {"matplotlib"})


def test_a_small_run_loads_what_it_needs(tmp_path: Path) -> None:
    """Columns do where nobody asked for a frame, and workloads that it has not stay unread."""
    changes = ["workload.num_requests=1", "workload.duration_s=", "workload.arrivals=constant"]
    args = ["run", str(PACKAGE.parent / "scenarios" / "quickstart.toml")]
    args += [word for change in changes for word in ("--set", change)]
    for output in ([], ["--json"]):
        loaded = loaded_by(CALLED.format(args=args + output))
        assert "simcluster.runs.simulate" in loaded
        assert not loaded & (LATE | {"matplotlib", "numpy.ma"})
        assert not loaded & {f"simcluster.workload.{name}" for name in ("clients", "sessions")}
        assert "simcluster.studies.check.facts" not in loaded


def test_public_names_are_there() -> None:
    """They are found when first used, and by who looks for them."""
    for name in simcluster.__all__:
        assert name in dir(simcluster)
        assert getattr(simcluster, name) is getattr(simcluster, name)
    with pytest.raises(AttributeError, match="no attribute 'simulated'"):
        _ = simcluster.simulated


@pytest.mark.parametrize("folder", [name for name, p in MODULES.items() if p.stem == "__init__"])
def test_the_docstring_of_a_package_names_its_modules(folder: str) -> None:
    """One line each; who comes from outside finds the way by it."""
    docstring = ast.get_docstring(TREES[folder]) or ""
    depth = folder.count(".") + 1 if folder else 0
    inside = {
        name.split(".")[depth]
        for name in MODULES
        if (name.startswith(f"{folder}.") if folder else name)
    }
    named = {line.split()[0].strip("`") for line in docstring.splitlines() if line.strip()}
    assert inside - {"__main__", "_compiled", "_version"} <= named
