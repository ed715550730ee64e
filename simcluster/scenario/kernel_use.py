"""What of measured kernel times (``engine.kernels``) the strategies of a scenario use."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import NamedTuple

from simcluster.catalog.kernel_file import KernelTable
from simcluster.config import LAW, Environment
from simcluster.errors import ConfigError, DataError
from simcluster.roofline.measured import Coverage, measured_kernels
from simcluster.scenario.scenario import Scenario


class Ranks(NamedTuple):
    """What kernels see of the layout of an instance."""

    tp_size: int
    """GPUs that share one layer."""
    spread: bool
    """Whether `ep_size` or `dp_size` spread the experts over other GPUs as well."""

    def __str__(self) -> str:
        beside = " with ep_size or dp_size" if self.spread else ""
        return f"TP {self.tp_size}{beside}"


def lines(scenario: Scenario) -> list[str]:
    """Return which kernels are measured and which are by the law; nothing where all are.

    What does not hold for all layouts of the scenario names those that it holds for.
    """
    if scenario.environment.kernels == LAW:
        return []
    said: dict[str, list[Ranks]] = {}
    for ranks, coverage in _coverages(scenario):
        own = coverage.lines if isinstance(coverage, Coverage) else [str(coverage)]
        for line in own:
            said.setdefault(line, []).append(ranks)
    every = set(_ranks(scenario))
    return [
        line if set(ranks) == every else f"{', '.join(map(str, dict.fromkeys(ranks)))}: {line}"
        for line, ranks in said.items()
    ]


def refuse_unused(scenario: Scenario) -> None:
    """Refuse a file of kernel times of which no strategy uses a row.

    Raises
    ------
    ConfigError
        If it has experts alone, and all strategies spread them.
    """
    kernels = scenario.environment.kernels
    if not isinstance(kernels, KernelTable) or not scenario.strategies:
        return
    found = [coverage for _, coverage in _coverages(scenario)]
    if all(isinstance(coverage, Coverage) and not coverage.measured for coverage in found):
        rule = "no row is used: it has experts alone, which ep_size or dp_size spreads (by the law)"
        remedy = f'Use "{LAW}", or measure other kernels too.'
        raise ConfigError("engine.kernels", kernels.name, rule, remedy)


def _ranks(scenario: Scenario) -> list[Ranks]:
    """Return the layouts that kernels see, each once; without strategies that of one GPU."""
    found = {one for strategy in scenario.strategies for one in _ranks_of(strategy)}
    return sorted(found or {Ranks(1, spread=False)})


def _ranks_of(strategy: object) -> Iterator[Ranks]:
    """Give the layout of a strategy's instances, and that of its prefill instances."""
    for prefix in ("", "prefill_"):
        tp_size, *others = (
            getattr(strategy, f"{prefix}{name}", None) or getattr(strategy, name, None) or 1
            for name in ("tp_size", "dp_size", "ep_size")
        )
        yield Ranks(tp_size, spread=max(others) > 1)


def _coverages(
    scenario: Scenario,
) -> Iterator[tuple[Ranks, Coverage | ConfigError | DataError]]:
    """Give the coverage of each model, GPU and layout, or why there is none."""
    environment = scenario.environment
    for model in environment.models:
        for cluster in environment.clusters:
            engine = environment.engine.on(cluster.gpu)
            own = dataclasses.replace(environment, model=model, cluster=cluster, engine=engine)
            for ranks in _ranks(scenario):
                yield ranks, _coverage(own, ranks)


def _coverage(environment: Environment, ranks: Ranks) -> Coverage | ConfigError | DataError:
    try:
        measured = measured_kernels(environment, ranks.tp_size)
    except (ConfigError, DataError) as error:
        return error
    assert measured is not None, "there is a source of measured kernels"
    return measured.coverage(spread=ranks.spread)
