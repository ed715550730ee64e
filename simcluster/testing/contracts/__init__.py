"""Contracts: what every implementation of an extension point keeps, as tests to inherit.

Derive a class in a test module, give it one fixture, run pytest::

    class TestMine(SchedulerContract):
        @pytest.fixture
        def scheduler(self):
            return Mine

=========== ========================================================================================
`scheduler` `SchedulerContract`: what an instance runs next
`queue`     `QueueContract`: in which order requests are admitted
`router`    `RouterContract`: which instance gets a request
`strategy`  `StrategyContract`: what is deployed
`step_time` `StepTimeContract`: how long a step takes
`arrivals`  `ArrivalContract`, `LengthContract`: what arrives, and when
`catalog`   `CatalogContract`: GPUs and models of a catalogue file
`base`      what they share: cases that hypothesis draws, runs compared, parts registered
=========== ========================================================================================

They need pytest and hypothesis, which no other part of the package imports. The examples that
hypothesis draws are the same on every machine and every day. Our own implementations inherit the
contracts for every registered name; ``docs/extending.md`` has a complete example of each.
"""

from simcluster.testing.contracts.arrivals import ArrivalContract, LengthContract
from simcluster.testing.contracts.catalog import CatalogContract
from simcluster.testing.contracts.queue import QueueContract
from simcluster.testing.contracts.router import RouterContract
from simcluster.testing.contracts.scheduler import SchedulerContract
from simcluster.testing.contracts.step_time import StepTimeContract
from simcluster.testing.contracts.strategy import StrategyContract

__all__ = [
    "ArrivalContract",
    "CatalogContract",
    "LengthContract",
    "QueueContract",
    "RouterContract",
    "SchedulerContract",
    "StepTimeContract",
    "StrategyContract",
]
