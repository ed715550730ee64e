"""simcluster: which serving strategy, on which GPUs, sustains the most requests within targets.

A folder imports only from those above it here; `tests/test_imports.py` holds the order.

==========  ===================================================================
name        idea
==========  ===================================================================
errors      one line that says key, value, rule and remedy
units       seconds and bytes, conversions, the time grid
rng         named random streams
request     a request: lengths, progress, time stamps
registry    extension points: implementations by the name that files use
catalog     what is known of GPUs, links, servers, models, engines and prices
config      resolved settings, as they travel inside the package
workload    which requests arrive, and when
quality     how good routed answers are
kvcache     the KV cache of an instance
roofline    how long a step takes, and what fits in memory
frames      what comes out of a run: columns, and the numbers made of them
routing     which instance gets a request
sched       what an instance runs next
engine      where simulated time passes: instances, links, groups of instances
strategies  NoDG, FuDG, PaDG, routed: instances, routing and links put together
scenario    what is asked: the scenario file and its tables
runs        one run, many runs, and the folders that keep them
show        results as text, pictures and timelines
report      results as an HTML page that needs no network
studies     questions asked of many runs: goodput, rank, cooptimize
fidelity    how far to trust it: measure, calibrate, validate
testing     specifications, laws and witnesses for tests
ui          a local page: a scenario as a form, and its answers
cli         the command line
==========  ===================================================================
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from simcluster import _compiled
from simcluster._version import __version__

if TYPE_CHECKING:
    from simcluster.runs.compare import compare
    from simcluster.runs.folder import read
    from simcluster.runs.simulate import simulate
    from simcluster.scenario.file import load, resolve
    from simcluster.scenario.scenario import Scenario

__all__ = ["Scenario", "__version__", "compare", "load", "read", "resolve", "simulate"]

_WHERE = {
    "Scenario": "simcluster.scenario.scenario",
    "compare": "simcluster.runs.compare",
    "load": "simcluster.scenario.file",
    "read": "simcluster.runs.folder",
    "resolve": "simcluster.scenario.file",
    "simulate": "simcluster.runs.simulate",
}
"""Modules of the public names. Each is imported at its first use: one module of the package can be
used, or the command line print its help, without the time that all others take."""


_compiled.choose()


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = getattr(importlib.import_module(_WHERE[name]), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
