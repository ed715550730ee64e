"""One source runs two ways: as Python, and compiled; `make compiled` runs this file compiled."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import pytest

from simcluster import _compiled
from simcluster._compiled import MODULES, source_of, why_not, write_record
from simcluster.engine.groups.front_end import FrontEnd, Gateway
from simcluster.engine.instance.owner import InstanceOwner
from simcluster.roofline import RooflineStepTime, WholeStepTime
from simcluster.routing import ROUTERS
from simcluster.routing.rolling_activation import CodeActivation, PaperActivation
from simcluster.sched import QUEUES, SCHEDULERS, RequestQueue, Scheduler
from simcluster.sched.policies import KeyedQueue

SUFFIX = EXTENSION_SUFFIXES[0]


@pytest.fixture
def built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a package of which every listed module stands beside an extension module."""
    monkeypatch.delenv("SIMCLUSTER_PURE", raising=False)
    for name in MODULES:
        source = source_of(name, tmp_path)
        source.parent.mkdir(parents=True, exist_ok=True)
        source.write_text(f"NAME = {name!r}\n")
        source.with_name(source.stem + SUFFIX).touch()
    write_record(tmp_path, tmp_path)
    return tmp_path


def test_the_list_names_modules() -> None:
    """In order, each once."""
    assert list(MODULES) == sorted(set(MODULES))
    assert all(source_of(name).is_file() for name in MODULES)


@pytest.mark.parametrize("name", MODULES)
def test_what_must_be_given_by_name_stands_before_what_need_not(name: str) -> None:
    """The other order makes mypyc 2.4 fail (`docs/decisions.md`)."""
    for node in ast.walk(ast.parse(source_of(name).read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef):
            has_default = [default is not None for default in node.args.kw_defaults]
            assert has_default == sorted(has_default), f"{name}.{node.name}, line {node.lineno}"


def test_what_is_compiled_of_these_sources_runs(built: Path) -> None:
    """For this interpreter, of all modules."""
    assert why_not(built) == ""


def test_without_extension_modules_it_runs_as_python(tmp_path: Path) -> None:
    """As after pip install -e ."""
    assert why_not(tmp_path) == "not compiled"


def test_a_changed_source_is_not_passed_over(built: Path) -> None:
    """Who edits a module of a compiled checkout runs what was edited, not what was compiled."""
    source_of("sched.base", built).write_text("NAME = 'edited'\n")
    assert why_not(built) == "sched.base has changed since it was compiled"


@pytest.mark.parametrize("name", [MODULES[0], MODULES[-1]])
def test_all_or_none_are_compiled(built: Path, name: str) -> None:
    """A module without its extension module is one after an interrupted build."""
    source = source_of(name, built)
    extension = source.with_name(source.stem + SUFFIX)
    extension.rename(extension.with_name(source.stem + ".cpython-27-elsewhere.so"))
    assert why_not(built) in ("not compiled", f"{name} is not compiled for this Python")


def test_a_list_that_has_grown_is_compiled_again(
    built: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The record is of another list."""
    monkeypatch.setattr(_compiled, "MODULES", MODULES[:-1])
    assert why_not(built) == f"{MODULES[-1]} came or went since the modules were compiled"


def test_a_record_that_cannot_be_read_is_none(built: Path) -> None:
    """Nothing is compiled that is not known to be."""
    (built / "compiled.json").write_text("{")
    assert why_not(built).startswith("compiled.json does not say what was compiled")


@pytest.mark.parametrize(("value", "pure"), [("1", True), ("yes", True), ("0", False), ("", False)])
def test_a_variable_switches_at_run_time(
    built: Path, monkeypatch: pytest.MonkeyPatch, value: str, pure: bool
) -> None:
    """For debugging: breakpoints and tracebacks of Python."""
    monkeypatch.setenv("SIMCLUSTER_PURE", value)
    assert why_not(built) == ("SIMCLUSTER_PURE is set" if pure else "")


def origin(name: str, **variables: str) -> tuple[str, str]:
    """Return the file that a new interpreter imports a module from, and what it says on the way."""
    code = f"import simcluster.{name} as module; print(module.__file__)"
    run = subprocess.run(
        [sys.executable, "-P", "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, **variables},
    )
    return run.stdout.strip(), run.stderr


def test_the_version_says_which_way_it_runs() -> None:
    """And Python imports what it says."""
    how = _compiled.how_it_runs()
    file, _ = origin("sched.base")
    assert how.split(":")[0] in ("compiled", "pure Python")
    assert file.endswith(".py") == how.startswith("pure")


def test_pure_is_pure_wherever_it_is_installed() -> None:
    """All modules come from their sources, whether something is compiled or not."""
    for name in (MODULES[0], MODULES[-1]):
        assert origin(name, SIMCLUSTER_PURE="1") == (str(source_of(name)), "")


DERIVED = [
    *{SCHEDULERS[name] for name in SCHEDULERS},
    *{QUEUES[name] for name in QUEUES},
    *{ROUTERS[name] for name in ROUTERS},
    *(Scheduler, RequestQueue, KeyedQueue, PaperActivation, CodeActivation),
    *(WholeStepTime, RooflineStepTime, InstanceOwner, FrontEnd, Gateway),
]


@pytest.mark.parametrize("base", sorted(set(DERIVED), key=lambda base: base.__name__))
def test_others_may_derive_from_what_they_extend(base: type) -> None:
    """Plug-ins are plain Python: mypyc refuses that unless the class allows it."""
    own = type("Own", (base,), {"mark": 1})
    assert issubclass(own, base)


@pytest.mark.parametrize("name", MODULES)
def test_compiled_modules_avoid_what_mypyc_does_otherwise(name: str) -> None:
    """The sum of a generator is a loop of its own there: of whole numbers, and not compensated.

    CPython compensates the rounding of sums of floats since 3.12, so that bits would differ.
    """
    for node in ast.walk(ast.parse(source_of(name).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "sum":
            assert not isinstance(node.args[0], ast.GeneratorExp), ast.unparse(node)
