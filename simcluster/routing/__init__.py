"""Routers: which instance gets a request. Pure decisions, no clock.

Add one: a file with a class that meets `Router` and a line in ``ROUTERS``. Rolling activation
(`simcluster.routing.rolling_activation`) needs targets and a prefill predictor and is built by its
strategy.

==================  =========================================================
module              idea
==================  =========================================================
base                the contract of a router, and what it sees of an instance
status              the load that instances reported last
round_robin         one after the other
least_loaded        the fewest tokens left
shared_queue        one queue in front of all instances
prefix_aware        the longest cached prefix, within a limit of load
ttft_estimate       the earliest estimated first token
rolling_activation  EcoServe's turns of prefill windows, with its constraints
prefill_predictor   the prefill time that rolling activation expects
shares              fixed shares between groups of instances
==================  =========================================================
"""

from __future__ import annotations

from collections.abc import Callable

from simcluster.registry import Registry
from simcluster.routing.base import InstanceView, Router
from simcluster.routing.least_loaded import LeastLoaded
from simcluster.routing.prefix_aware import PrefixAware
from simcluster.routing.round_robin import RoundRobin
from simcluster.routing.shared_queue import SharedQueue
from simcluster.routing.status import Status
from simcluster.routing.ttft_estimate import TtftEstimate

ROUTERS: Registry[Callable[[], Router]] = Registry(
    "simcluster.routers",
    {
        "round-robin": RoundRobin,
        "least-loaded": LeastLoaded,
        "shared-queue": SharedQueue,
        "prefix-aware": PrefixAware,
    },
)
"""Routers by the name that ``strategy.router`` gives them."""

__all__ = [
    "ROUTERS",
    "InstanceView",
    "LeastLoaded",
    "PrefixAware",
    "RoundRobin",
    "Router",
    "SharedQueue",
    "Status",
    "TtftEstimate",
]
