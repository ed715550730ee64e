"""Serving strategies: settings that compose instances, routing and links into a deployment.

Add one: a file with a settings class that meets `Strategy` and a line in ``STRATEGIES``; or, from
another package, an entry point in the group ``simcluster.strategies``.
"""

from __future__ import annotations

from importlib.metadata import entry_points
from typing import Any

from simcluster.strategies.base import CommonSettings, Strategy
from simcluster.strategies.fudg import FuDG
from simcluster.strategies.nodg import NoDG
from simcluster.strategies.padg import PaDG
from simcluster.strategies.routed import Pool, Routed

STRATEGIES: dict[str, type[Any]] = {"nodg": NoDG, "fudg": FuDG, "padg": PaDG, "routed": Routed}


def all_strategies() -> dict[str, type[Any]]:
    """Return ``STRATEGIES`` and those of installed packages, by kind; ours win a name clash."""
    others = {point.name: point.load() for point in entry_points(group="simcluster.strategies")}
    return {**others, **STRATEGIES}


__all__ = [
    "STRATEGIES",
    "CommonSettings",
    "FuDG",
    "NoDG",
    "PaDG",
    "Pool",
    "Routed",
    "Strategy",
    "all_strategies",
]
