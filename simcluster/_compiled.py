"""Which modules can be compiled, and which way they run: as Python, or as extension modules.

One source, two ways. ``SIMCLUSTER_COMPILE=1 pip install .`` and ``make fast`` compile `MODULES`
with mypyc and write down what they were compiled from. Where that is there and still true, Python
imports the extension modules; else, and with ``SIMCLUSTER_PURE=1``, their sources. It is all of
them or none: a compiled class cannot derive from one that is not.
"""

from __future__ import annotations

import json
import os
import sys
import zlib
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import EXTENSION_SUFFIXES, ModuleSpec
from importlib.util import spec_from_file_location
from pathlib import Path
from types import ModuleType

MODULES = (
    "engine.clock",
    "engine.groups.front_end",
    "engine.groups.handover",
    "engine.groups.macro_instance",
    "engine.groups.overall",
    "engine.groups.prefill_gateway",
    "engine.groups.reports",
    "engine.groups.step_connector",
    "engine.instance.data_parallel",
    "engine.instance.dispatcher",
    "engine.instance.gpu",
    "engine.instance.held_output",
    "engine.instance.instance",
    "engine.instance.kernel_runner",
    "engine.instance.kv_hooks",
    "engine.instance.lock_step",
    "engine.instance.owner",
    "engine.instance.pipeline",
    "engine.instance.pipeline_runner",
    "engine.instance.pipelined",
    "engine.instance.ports",
    "engine.instance.runner",
    "engine.instance.span",
    "engine.instance.span_log",
    "engine.instance.state",
    "engine.links.link",
    "engine.links.wires",
    "engine.log",
    "engine.recorder",
    "engine.request_log",
    "kvcache.layout",
    "kvcache.pool",
    "kvcache.prefix",
    "request",
    "roofline.attention",
    "roofline.base",
    "roofline.bounded",
    "roofline.collectives",
    "roofline.dispatch",
    "roofline.experts",
    "roofline.host",
    "roofline.kernels",
    "roofline.operators",
    "roofline.pipeline",
    "roofline.smooth",
    "roofline.step_kernels",
    "roofline.steptime",
    "roofline.whole",
    "routing.base",
    "routing.least_loaded",
    "routing.prefill_predictor",
    "routing.prefix_aware",
    "routing.rolling_activation",
    "routing.round_robin",
    "routing.shared_queue",
    "routing.status",
    "routing.ttft_estimate",
    "runs.source",
    "sched.base",
    "sched.books",
    "sched.chunked",
    "sched.chunked_apart",
    "sched.cycle",
    "sched.decode_batch",
    "sched.plan",
    "sched.policies",
    "sched.prefill_priority",
    "sched.queue",
    "sched.swap",
    "units",
)
"""Modules that are compiled, without ``simcluster.``: those in which a simulation spends its time.

A class of them that code from elsewhere may derive from needs
``mypyc_attr(allow_interpreted_subclasses=True)``.
"""

_ROOT = Path(__file__).parent
_RECORD = "compiled.json"


def source_of(name: str, root: Path = _ROOT) -> Path:
    """Return the file of a module of `MODULES`."""
    return root.joinpath(*name.split(".")).with_suffix(".py")


def record(root: Path = _ROOT) -> dict[str, int]:
    """Return the checksum of each module's source, which is written beside what is compiled."""
    return {name: zlib.crc32(source_of(name, root).read_bytes()) for name in MODULES}


def write_record(folder: Path, root: Path) -> None:
    """Write down in `folder` what is compiled from the package in `root`."""
    text = json.dumps(record(root), indent=1)
    (folder / _RECORD).write_text(text + "\n", encoding="utf-8")


def why_not(root: Path = _ROOT) -> str:
    """Return why the compiled modules do not run; empty if they do."""
    if not (root / _RECORD).exists() or not _extension(source_of(MODULES[0], root)):
        return "not compiled"
    if os.environ.get("SIMCLUSTER_PURE", "0") not in ("", "0"):
        return "SIMCLUSTER_PURE is set"
    try:
        known = json.loads((root / _RECORD).read_text(encoding="utf-8"))
        now = record(root)
    except (OSError, ValueError) as error:
        return f"{_RECORD} does not say what was compiled: {error}"
    for name in {**now, **known}:
        if name not in now or name not in known:
            return f"{name} came or went since the modules were compiled"
        if known[name] != now[name]:
            return f"{name} has changed since it was compiled"
        if not _extension(source_of(name, root)):
            return f"{name} is not compiled for this Python"
    return ""


def how_it_runs() -> str:
    """Return ``"compiled"``, or ``"pure Python"`` with the reason where there is another way."""
    reason = why_not()
    if not reason:
        return "compiled"
    return "pure Python" if reason == "not compiled" else f"pure Python: {reason}"


def _extension(source: Path) -> Path | None:
    """Return the extension module beside a source that this interpreter can load."""
    for suffix in EXTENSION_SUFFIXES:
        beside = source.with_name(source.stem + suffix)
        if beside.exists():
            return beside
    return None


class _Sources(MetaPathFinder):
    """Finds the sources of modules beside which there are compiled ones that must not run."""

    def __init__(self) -> None:
        self._runs_pure: bool | None = None

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return where the source of a compiled module is; None where Python finds what runs."""
        package, _, name = fullname.partition(".")
        if package != "simcluster" or not name:
            return None
        source = source_of(name)
        if not source.exists() or _extension(source) is None:
            return None
        if self._runs_pure is None:
            reason = why_not()
            self._runs_pure = bool(reason)
            if reason and reason != "SIMCLUSTER_PURE is set":
                sys.stderr.write(
                    f"simcluster runs as pure Python: {reason}. Compile again (make fast), or "
                    "remove what is compiled (make pure).\n"
                )
        return spec_from_file_location(fullname, source) if self._runs_pure else None


def choose() -> None:
    """Let imports find what shall run; nothing is to choose where nothing is compiled."""
    if (_ROOT / _RECORD).exists() and not any(isinstance(f, _Sources) for f in sys.meta_path):
        sys.meta_path.insert(0, _Sources())
