"""The field of a ranking: the candidates of the space and of the file, each once, and baselines."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from simcluster.config import Environment
from simcluster.errors import ConfigError, nearest
from simcluster.scenario.rank_table import RankTable
from simcluster.strategies import FuDG, NoDG, PaDG, Strategy
from simcluster.strategies.base import SchedulerSettings, with_defaults_of
from simcluster.studies.space import build, space

MOST_BASELINES: Final = 4
"""Strategies of the file that are baselines where nobody names any: each takes long runs."""
IDLE: Final = "instances leave some of num_gpus idle"


@dataclass(frozen=True, slots=True)
class Field:
    """Who is ranked."""

    strategies: dict[str, Strategy]
    """By name: those of the space, then those of the file."""
    removed: Counter[str]
    """Number of removed candidates by the rule that removed them."""
    twins: dict[str, str]
    """Candidates of the space that a strategy of the file is: by their name, its name."""

    def baselines(self, table: RankTable, own: Sequence[str]) -> list[str]:
        """Return the names of the baselines.

        Parameters
        ----------
        table : RankTable
            Names them, or leaves it to the file.
        own : sequence of str
            The strategies of the file.

        Raises
        ------
        ConfigError
            If one is no candidate.
        """
        if table.baselines is None:
            return [name for name in own if name in self.strategies][:MOST_BASELINES]
        names = [self.twins.get(name, name) for name in table.baselines]
        for name in names:
            if name not in self.strategies:
                hint = nearest(name, list(self.strategies))
                raise ConfigError("rank.baselines", name, "is not among the candidates", hint)
        return list(dict.fromkeys(names))

    def notes(self) -> list[str]:
        """Return which names stand for one candidate."""
        return [f"{other} is {name} of the file" for other, name in self.twins.items()]


def field_of(table: RankTable, environment: Environment, own: Sequence[Strategy]) -> Field:
    """Return the candidates of a table and of a file.

    Parameters
    ----------
    table : RankTable
        The space.
    environment : Environment
        The machines, model and engine.
    own : sequence of Strategy
        The strategies of the file. One that the space has too is ranked once, by its own name.

    Raises
    ------
    ConfigError
        If one of the file does not fit.
    DataError
        If nothing is left.
    """
    found = space(table, environment)
    if not found.strategies and not own:
        found.refuse_empty()
    alike = {strategy.name: _resolved(strategy, environment) for strategy in own}
    twins: dict[str, str] = {}
    for name, strategy in found.strategies.items():
        resolved = _resolved(strategy, environment) if own else None
        same = [other for other, one in alike.items() if one == resolved]
        if same and name not in alike:
            twins[name] = same[0]
    left = {n: s for n, s in found.strategies.items() if n not in twins}
    return Field({**left, **{s.name: s for s in own}}, found.removed, twins)


def _resolved(strategy: Strategy, environment: Environment) -> Strategy:
    """Return a strategy without its name, with what its defaults stand for."""
    count = Counter(placed.role for placed in build(environment, strategy).placed)
    engine = environment.engine
    strategy = with_defaults_of(engine, strategy)
    if isinstance(strategy, SchedulerSettings) and strategy.splits_prompts:
        budget = strategy.chunk_size or strategy.budget(engine)
        strategy = dataclasses.replace(strategy, chunk_size=budget, max_num_batched_tokens=None)
    if isinstance(strategy, NoDG | PaDG):
        return dataclasses.replace(strategy, name="-", instances=count["mixed"])
    if isinstance(strategy, FuDG):
        return dataclasses.replace(
            strategy,
            name="-",
            prefill_instances=count["prefill"],
            decode_instances=count["decode"],
        )
    return strategy
