"""Several models behind a router by difficulty, on groups of instances of any strategy (BOute)."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from simcluster.config import Name, Settings
from simcluster.engine.groups.cluster import Cluster, Deployment, EntryPoint
from simcluster.engine.links.topology import Topology
from simcluster.engine.placement import Machines
from simcluster.errors import ConfigError, nearest
from simcluster.request import Request
from simcluster.routing.shares import FixedShares
from simcluster.strategies.fudg import FuDG
from simcluster.strategies.nodg import NoDG
from simcluster.strategies.padg import PaDG

_SLACK = 1e-9

Serving = Annotated[
    NoDG | FuDG | PaDG,
    Field(discriminator="kind", description="Its instances: the keys of a strategy."),
]


@dataclass(frozen=True, slots=True, kw_only=True)
class ServingGroup(Settings):
    """Instances of one model on GPUs of one type (a table ``[[strategy.pool]]``)."""

    model: Annotated[str, Field(min_length=1)]
    """Which of the scenario's models."""
    gpu: Annotated[str, Field(min_length=1)]
    """Which of the scenario's GPU types they run on."""
    serving: Serving
    weight: Annotated[float | None, Field(gt=0)] = None
    """Its share of the model's requests, relative to the model's other groups; default: its number
    of GPUs."""


class ModelRouter:
    """Where requests of a deployment of several models enter: each goes to a model by its score.

    Parameters
    ----------
    thresholds : sequence of float
        Scores at which the next stronger model takes over, one less than models, never falling.
    groups : sequence of sequence of EntryPoint
        Groups of instances of each model.
    weights : sequence of sequence of float
        Share of each group in its model's requests.
    """

    def __init__(
        self,
        thresholds: Sequence[float],
        groups: Sequence[Sequence[EntryPoint]],
        weights: Sequence[Sequence[float]],
    ) -> None:
        self._thresholds = list(thresholds)
        self._groups = [list(of_model) for of_model in groups]
        self._shares = [FixedShares(of_model) for of_model in weights]

    def submit(self, request: Request) -> None:
        """Choose the model by the score and the group by its share."""
        request.model = model = bisect_right(self._thresholds, request.score)
        self._groups[model][self._shares[model].choose()].submit(request)


@dataclass(frozen=True, slots=True, kw_only=True)
class Routed(Settings):
    """Several models, weak to strong; the harder a request, the stronger its model.

    A router scores each request's difficulty (``[quality]``); thresholds on the score, equivalently
    load fractions, split the requests (BOute, section 3). Groups of one model share its requests in
    fixed proportion.
    """

    kind: Literal["routed"] = "routed"
    name: Name
    """Name in tables and plots."""
    models: Annotated[tuple[Annotated[str, Field(min_length=1)], ...], Field(min_length=1)]
    """Models of the scenario, from the weakest to the strongest."""
    fractions: tuple[Annotated[float, Field(ge=0, le=1)], ...] | None = None
    """Load fraction of each model; they add up to 1."""
    thresholds: tuple[Annotated[float, Field(ge=0, le=1)], ...] | None = None
    """In place of fractions: scores at which the next stronger model takes over, one less than
    models."""
    pool: Annotated[tuple[ServingGroup, ...], Field(min_length=1)]
    """Groups of instances, at least one a model."""

    def cuts(self) -> tuple[float, ...]:
        """Return the scores at which the next stronger model takes over.

        Raises
        ------
        ConfigError
            If neither fractions nor thresholds are given, or both; if there are too many or too
            few; if fractions do not add up to 1 or thresholds fall.
        """
        key, num_models = f"strategy.{self.name}", len(self.models)
        if len(set(self.models)) < num_models:
            raise ConfigError(
                f"{key}.models", str(list(self.models)), "names a model twice", "Name each once."
            )
        if (self.fractions is None) == (self.thresholds is None):
            rule = "is given beside thresholds" if self.fractions else "is missing"
            remedy = "Give either the load fraction of each model or the thresholds between them."
            raise ConfigError(f"{key}.fractions", None, rule, remedy)
        if self.thresholds is not None:
            _check_count(f"{key}.thresholds", self.thresholds, num_models - 1, num_models)
            if list(self.thresholds) != sorted(self.thresholds):
                raise ConfigError(
                    f"{key}.thresholds",
                    str(list(self.thresholds)),
                    "must rise: a stronger model takes the harder requests",
                    f"Write {sorted(self.thresholds)}.",
                )
            return self.thresholds
        assert self.fractions is not None
        _check_count(f"{key}.fractions", self.fractions, num_models, num_models)
        total = sum(self.fractions)
        if abs(total - 1) > _SLACK:
            raise ConfigError(
                f"{key}.fractions",
                str(list(self.fractions)),
                f"must add up to 1, not {total:g}",
                "Give the share of the requests of each model.",
            )
        cuts = [0.0]
        for fraction in self.fractions[:-1]:
            cuts.append(min(cuts[-1] + fraction, 1.0))
        # Without requests for what is stronger no score reaches it, not even 1.
        strongest = max(m for m, fraction in enumerate(self.fractions) if fraction > 0)
        return tuple(2.0 if m >= strongest else cut for m, cut in enumerate(cuts[1:]))

    def build(self, cluster: Cluster) -> Deployment:
        """Place every group on the machines of its GPU type and put the router in front.

        Raises
        ------
        ConfigError
            If a group names a model or GPU that the scenario has not, a model with requests has no
            group, or the instances do not fit.
        """
        cuts = self.cuts()
        machines, first_node = {}, 0
        for config in cluster.environment.clusters:
            machines[config.gpu.name] = (
                Machines(config, first_node),
                Topology(config, first_node),
            )
            first_node += config.num_nodes
        entries: list[list[EntryPoint]] = [[] for _ in self.models]
        weights: list[list[float]] = [[] for _ in self.models]
        closers: list[Callable[[float], None]] = []
        for number, group in enumerate(self.pool):
            key = f"strategy.{self.name}.pool[{number}]"
            known = [m.spec.name for m in cluster.environment.models]
            _check_name(f"{key}.model", group.model, [m for m in known if m in self.models])
            _check_name(f"{key}.gpu", group.gpu, list(machines))
            environment = cluster.environment.part(group.model, group.gpu)
            part = cluster.part(environment, *machines[group.gpu])
            before = cluster.num_gpus
            built = group.serving.build(part)
            model = self.models.index(group.model)
            entries[model].append(built.entry)
            weights[model].append(group.weight or float(cluster.num_gpus - before))
            closers += built.on_end
        for model, name in enumerate(self.models):
            low = cuts[model - 1] if model else 0.0
            high = cuts[model] if model < len(cuts) else 2.0
            if not entries[model] and low < high:
                raise ConfigError(
                    f"strategy.{self.name}.pool",
                    None,
                    f"no group serves {name}, which gets requests",
                    f'Add a [[strategy.pool]] with model = "{name}", or give it no load.',
                )
        return Deployment(
            ModelRouter(cuts, entries, weights), on_end=tuple(closers), models=self.models
        )


def _check_count(key: str, values: Sequence[float], wanted: int, num_models: int) -> None:
    if len(values) != wanted:
        problem = "too many" if len(values) > wanted else "too few"
        raise ConfigError(
            key,
            str(list(values)),
            f"{len(values)} are {problem} for {num_models} models",
            f"Give {wanted}.",
        )


def _check_name(key: str, name: str, known: Sequence[str]) -> None:
    if name not in known:
        raise ConfigError(key, name, "is not in this scenario", nearest(name, known))
