"""What is installed is found by its entry points, and a scenario can name it."""

from __future__ import annotations

from pathlib import Path

import pytest
from simcluster_example.alternating import Alternating
from simcluster_example.batches import BatchArrivals
from simcluster_example.shortest_prompt import ShortestPrompt
from simcluster_example.table_times import table_times
from simcluster_example.two_choices import TwoChoices
from simcluster_example.two_tiers import TwoTiers

import simcluster
from simcluster.registry import Registry
from simcluster.roofline import STEP_TIMES
from simcluster.routing import ROUTERS
from simcluster.sched import QUEUES, SCHEDULERS
from simcluster.strategies import STRATEGIES
from simcluster.workload import ARRIVALS

SCENARIO = Path(__file__).parents[1] / "scenario.toml"


@pytest.mark.parametrize(
    ("registry", "name", "implementation"),
    [
        (QUEUES, "shortest-prompt", ShortestPrompt),
        (SCHEDULERS, "alternating", Alternating),
        (ROUTERS, "two-choices", TwoChoices),
        (STRATEGIES, "two-tiers", TwoTiers),
        (ARRIVALS, "batches", BatchArrivals),
        (STEP_TIMES, "table", table_times),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_registry_has_the_entry_point(
    registry: Registry[object], name: str, implementation: object
) -> None:
    """Under the name that ``pyproject.toml`` gives it."""
    assert registry[name] is implementation


def test_the_scenario_runs_in_worker_processes() -> None:
    """Two strategies at two rates; every request is served."""
    scenario = simcluster.load(SCENARIO, {"workload.num_requests": 60})
    sweep = simcluster.compare(scenario, jobs=2).sweep
    assert sorted(sweep["strategy"]) == ["equal", "equal", "two tiers", "two tiers"]
    assert (sweep["num_finished"] == 60).all()
