"""A scenario: everything a simulation needs to know, resolved."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from simcluster.catalog import PACKAGED, Catalog
from simcluster.config import Environment, RunConfig
from simcluster.errors import ConfigError, nearest
from simcluster.quality import CommonQuality
from simcluster.scenario import arguments
from simcluster.scenario.cooptimize_table import CooptimizeTable
from simcluster.scenario.rank_table import RankTable
from simcluster.strategies.base import Strategy
from simcluster.workload import WorkloadSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """Everything that a question to the simulator is about, resolved."""

    environment: Environment
    """Model, machines, engine, targets."""
    workload: WorkloadSettings
    """What arrives."""
    rates_rps: tuple[float, ...]
    """Rates of a sweep (requests/s), each > 0; may be empty."""
    strategies: tuple[Strategy, ...]
    """What is compared; none where ``[rank]`` or ``[cooptimize]`` makes its own."""
    run: RunConfig
    """Seeds, measured window, resolution."""
    document: Mapping[str, Any]
    """The scenario file with all defaults filled in, as `resolve` takes it: to be written, and to
    make another scenario of. Everything to be read from it has a value here."""
    quality: CommonQuality | None = None
    """How good answers are by the router's score, for strategies of several models."""
    catalog: Catalog = PACKAGED
    """The entries that the scenario could name; those that it does name stand above."""
    rank: RankTable | None = None
    """The space of ``simcluster rank``; None where the file has no table ``[rank]``."""
    cooptimize: CooptimizeTable | None = None
    """Limits and goal of ``simcluster cooptimize``; None where the file has no such table."""

    def strategy(self, name: str | None = None) -> Strategy:
        """Return the strategy called `name`, the first by default.

        Raises
        ------
        ConfigError
            If there is none of that name, or none at all.
        """
        self.refuse_no_strategy()
        if name is None:
            return self.strategies[0]
        for strategy in self.strategies:
            if strategy.name == name:
                return strategy
        rule = "the scenario has no strategy of this name"
        raise ConfigError(
            "strategy", name, rule, nearest(str(name), [s.name for s in self.strategies])
        )

    def refuse_no_strategy(self) -> None:
        """Refuse a scenario that has nothing to simulate.

        Raises
        ------
        ConfigError
            If there is no strategy; names the command that would make its own.
        """
        if self.strategies:
            return
        remedy = 'Add a table [[strategy]], such as name = "vLLM", kind = "nodg".'
        for command, table in (("rank", self.rank), ("cooptimize", self.cooptimize)):
            if table is not None:
                remedy += f" Or use `simcluster {command}`, which makes its own from [{command}]."
        raise ConfigError("strategy", None, "the scenario has none", remedy)

    def with_strategies(self, strategies: Iterable[Strategy]) -> Scenario:
        """Return this scenario with other strategies, in its document too."""
        own = tuple(strategies)
        document = {key: value for key, value in self.document.items() if key != "strategy"}
        return replace(self, strategies=own, document=document | tables_of(own))

    def only(self, *names: str) -> Scenario:
        """Return this scenario with some of its strategies, by their names."""
        return self.with_strategies(map(self.strategy, names))

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


def tables_of(strategies: Iterable[Strategy]) -> dict[str, list[Any]]:
    """Return the tables ``[[strategy]]`` of a document; none where there are no strategies."""
    settings: Any = tuple(strategies)
    return {"strategy": [as_read(asdict(s)) for s in settings]} if settings else {}


def as_read(value: Any) -> Any:
    """Return `value` as ``tomllib`` would give it: no None, lists for tuples, text for paths."""
    if isinstance(value, dict):
        return {k: as_read(v) for k, v in value.items() if v is not None}
    if isinstance(value, list | tuple):
        return [as_read(v) for v in value]
    return value if isinstance(value, str | int | float) else str(value)


def refuse_other(scenario: object, *, empty: bool = False) -> None:
    """Refuse what is not a scenario, such as the path of its file.

    Raises
    ------
    ConfigError
        If `scenario` is not a scenario, or has no strategy and needs one.
    """
    remedy = "simcluster.load reads one from a file, simcluster.resolve makes one of tables."
    arguments.of_type("scenario", scenario, Scenario, "a scenario", remedy)
    if isinstance(scenario, Scenario) and not empty:
        scenario.refuse_no_strategy()
