"""Serving strategies: settings that compose instances, routing and links into a deployment.

Add one: a file with a settings class that meets `Strategy` and a line in ``STRATEGIES``; or, from
another package, an entry point in the group ``simcluster.strategies``.

Authors find `Cluster`, `Deployment`, `Gateway` and `InstanceShape` here too: this is their one
door.

=======  ===============================================================
module   idea
=======  ===============================================================
base     the contract, and the settings that all share
nodg     every instance prefills and decodes (vLLM, Sarathi-Serve)
fudg     prefill and decode on different instances (DistServe, MoonCake)
pools    where the instances of a prefill and a decode pool stand
padg     prefill and decode on the same instances, in turns (EcoServe)
routed   several models behind a router by difficulty (BOute)
scaling  settings of instances that come and go
=======  ===============================================================
"""

from __future__ import annotations

from typing import Any

from simcluster.engine.groups.cluster import Cluster, Deployment
from simcluster.engine.groups.front_end import Gateway
from simcluster.engine.shape import InstanceShape
from simcluster.registry import Registry
from simcluster.strategies.base import (
    CommonSettings,
    RouterSettings,
    SchedulerSettings,
    Strategy,
    dry_run,
)
from simcluster.strategies.fudg import FuDG
from simcluster.strategies.nodg import NoDG
from simcluster.strategies.padg import PaDG
from simcluster.strategies.routed import Routed, ServingGroup

STRATEGIES: Registry[type[Any]] = Registry(
    "simcluster.strategies", {"nodg": NoDG, "fudg": FuDG, "padg": PaDG, "routed": Routed}
)
"""Settings classes of strategies by the ``kind`` of their table."""


__all__ = [
    "STRATEGIES",
    "Cluster",
    "CommonSettings",
    "Deployment",
    "FuDG",
    "Gateway",
    "InstanceShape",
    "NoDG",
    "PaDG",
    "Routed",
    "RouterSettings",
    "SchedulerSettings",
    "ServingGroup",
    "Strategy",
    "dry_run",
]
