"""What of this installation works: versions, cores, extras, places to write, measured data."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from simcluster._compiled import how_it_runs
from simcluster._version import __version__
from simcluster.show.terminal import hanging

State = Literal["ok", "absent", "broken"]

_PACKAGE: Final = Path(__file__).parents[1]
_NEEDED: Final = (
    "simpy", "numpy", "pandas", "matplotlib", "click", "pyarrow", "pydantic", "joblib", "scipy",
    "tomli-w", "jinja2", "mypy_extensions",
)  # fmt: skip
"""Distributions that simcluster needs (setup.cfg)."""
_EXTRAS: Final = {
    "dask": ("distributed", "runs on several machines (--dask)"),
    "cooptimize": ("optuna", "simcluster cooptimize"),
    "gpu": ("torch", "simcluster measure"),
    "browser": ("playwright", "tests of reports in a browser"),
    "ui": ("nicegui", "simcluster ui"),
}
"""By extra: the module it brings, and what for."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at."""

    what: str
    state: State
    words: str


def findings() -> list[Finding]:
    """Return what there is; a state of ``"broken"`` is what keeps commands from working."""
    found = [
        Finding("simcluster", "ok", f"{__version__} in {_PACKAGE}"),
        Finding("python", "ok", f"{platform.python_version()} on {platform.system()}"),
        _cores(),
        _compiled(),
        *map(_distribution, _NEEDED),
        *(_extra(name, *about) for name, about in _EXTRAS.items()),
        _writable("working folder", Path.cwd()),
        _writable("temporary folder", Path(tempfile.gettempdir())),
        _data(),
    ]
    return found


def _cores() -> Finding:
    count = os.cpu_count() or 1
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else count
    return Finding("cores", "ok", f"{usable} usable of {count}; --jobs uses all by default")


def _compiled() -> Finding:
    return Finding("build", "ok", how_it_runs())


def _distribution(name: str) -> Finding:
    try:
        return Finding(name, "ok", importlib.metadata.version(name))
    except importlib.metadata.PackageNotFoundError:
        return Finding(name, "broken", "is not installed: pip install simcluster again")


def _extra(name: str, module: str, purpose: str) -> Finding:
    if importlib.util.find_spec(module) is None:
        words = f'for {purpose}: pip install "simcluster[{name}]"'
        return Finding(f"extra {name}", "absent", words)
    return Finding(f"extra {name}", "ok", f"{module} {importlib.metadata.version(module)}")


def _writable(what: str, place: Path) -> Finding:
    try:
        with tempfile.TemporaryFile(dir=place):
            return Finding(what, "ok", f"{place} can be written")
    except OSError as error:
        return Finding(what, "broken", f"{place} cannot be written ({error.strerror})")


def _data() -> Finding:
    """Measured sets are for `simcluster validate` alone."""
    named = os.environ.get("SIMCLUSTER_DATA")
    if not named:
        words = "SIMCLUSTER_DATA is not set; simcluster validate takes a folder"
        return Finding("measured data", "absent", words)
    if Path(named).is_dir():
        return Finding("measured data", "ok", named)
    return Finding("measured data", "absent", f"SIMCLUSTER_DATA = {named} is no folder")


def as_text(found: list[Finding]) -> str:
    """Return the findings as a table, and what they come to."""
    width = max(len(one.what) for one in found)
    lines = [hanging(f"{one.state:<8}{one.what:<{width}}  ", one.words) for one in found]
    broken = [one.what for one in found if one.state == "broken"]
    end = f"Broken: {', '.join(broken)}." if broken else "All that is needed works."
    return "\n".join([*lines, "", end]) + "\n"
