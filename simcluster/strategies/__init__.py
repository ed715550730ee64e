"""Serving strategies: settings that compose instances, routing and links into a deployment.

Add one: a file with a settings class that meets `Strategy` and a line in ``STRATEGIES``; or, from
another package, an entry point in the group ``simcluster.strategies``.
"""

from __future__ import annotations

from typing import Any

from simcluster.registry import Registry
from simcluster.strategies.base import CommonSettings, Strategy, dry_run
from simcluster.strategies.fudg import FuDG
from simcluster.strategies.nodg import NoDG
from simcluster.strategies.padg import PaDG
from simcluster.strategies.routed import Pool, Routed

STRATEGIES: Registry[type[Any]] = Registry(
    "simcluster.strategies", {"nodg": NoDG, "fudg": FuDG, "padg": PaDG, "routed": Routed}
)
"""Settings classes of strategies by the ``kind`` of their table."""


__all__ = [
    "STRATEGIES",
    "CommonSettings",
    "FuDG",
    "NoDG",
    "PaDG",
    "Pool",
    "Routed",
    "Strategy",
    "dry_run",
]
