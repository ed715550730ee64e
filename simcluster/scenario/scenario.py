"""A scenario: everything a simulation needs to know, resolved."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from simcluster.catalog import PACKAGED, Catalog
from simcluster.config import Environment, RunConfig
from simcluster.errors import ConfigError, nearest
from simcluster.quality import CommonQuality
from simcluster.scenario import arguments
from simcluster.strategies.base import Strategy
from simcluster.workload import WorkloadSettings

NO_STRATEGY: Final = 'Add a table [[strategy]], such as name = "vLLM", kind = "nodg".'
"""What to do where a scenario has no strategy."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """What to simulate.

    Attributes
    ----------
    environment : Environment
        Model, machines, engine, targets.
    workload : WorkloadSettings
        What arrives.
    rates_rps : tuple of float
        Rates of a sweep (requests/s), each > 0; may be empty.
    strategies : tuple of Strategy
        What is compared, at least one.
    run : RunConfig
        Seeds, window, resolution.
    document : mapping
        The scenario file with all defaults filled in.
    quality : CommonQuality or None
        How good answers are by the router's score, for strategies of several models.
    catalog : Catalog
        The entries that the scenario could name; those that it does name stand above.
    """

    environment: Environment
    workload: WorkloadSettings
    rates_rps: tuple[float, ...]
    strategies: tuple[Strategy, ...]
    run: RunConfig
    document: Mapping[str, Any]
    quality: CommonQuality | None = None
    catalog: Catalog = PACKAGED

    def strategy(self, name: str | None = None) -> Strategy:
        """Return the strategy called `name`, the first by default.

        Raises
        ------
        ConfigError
            If there is none of that name, or none at all.
        """
        if name is None and self.strategies:
            return self.strategies[0]
        for strategy in self.strategies:
            if strategy.name == name:
                return strategy
        raise ConfigError(
            "strategy",
            name,
            "the scenario has no strategy of this name",
            nearest(str(name), [s.name for s in self.strategies])
            if self.strategies
            else NO_STRATEGY,
        )

    @property
    def default_rate_rps(self) -> float | None:
        """Rate (requests/s) of a run that names none.

        That of the workload, else the arrivals' own (None: of a trace, schedule or clients), else
        the first of the sweep.
        """
        if self.workload.rate_rps is not None:
            return self.workload.rate_rps
        process = self.workload.arrival_process
        own_rate = process.has_lengths and not getattr(process, "needs_rate", False)
        if own_rate or getattr(process, "own_rate_rps", None) is not None:
            return None
        return self.rates_rps[0] if self.rates_rps else None


def refuse_other(scenario: object, *, empty: bool = False) -> None:
    """Refuse what is not a scenario, such as the path of its file.

    Parameters
    ----------
    scenario : object
        What was given.
    empty : bool
        Whether one without strategies will do.

    Raises
    ------
    ConfigError
        If so.
    """
    remedy = "simcluster.load reads one from a file, simcluster.resolve makes one of tables."
    arguments.of_type("scenario", scenario, Scenario, "a scenario", remedy)
    if isinstance(scenario, Scenario) and not scenario.strategies and not empty:
        raise ConfigError("strategy", None, "the scenario has none", NO_STRATEGY)
