"""What the report of a run or a comparison needs of it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from simcluster.config import SloConfig
from simcluster.frames.goodput import representative_rate, strategies, wanted_shares
from simcluster.frames.schema import Columns
from simcluster.report import charts
from simcluster.runs.folder import Comparison, rows_of


@dataclass(frozen=True)
class RunFacts:
    """What the report of a comparison needs of it, read once."""

    comparison: Comparison
    folder: Path

    @cached_property
    def slo(self) -> SloConfig:
        """The targets."""
        return self.comparison.scenario.environment.slo

    @cached_property
    def targets(self) -> tuple[str, ...]:
        """The targets that are set, of `config.TARGETS`."""
        return self.slo.targets

    @cached_property
    def names(self) -> list[str]:
        """The strategies, in the order of the sweep."""
        return strategies(self.comparison.sweep)

    @cached_property
    def styles(self) -> charts.Styles:
        """How each strategy looks."""
        return charts.Styles(self.names)

    @cached_property
    def rates(self) -> list[float]:
        """Offered rates, rising; none in a closed loop."""
        return sorted(self.comparison.sweep["rate_rps"].dropna().unique().tolist())

    @cached_property
    def is_swept(self) -> bool:
        """Whether there are several rates."""
        return len(self.rates) > 1

    @cached_property
    def rate(self) -> float:
        """The rate that distributions are shown at first (requests/s).

        NaN in a closed loop, and where a run has no counted request.
        """
        sweep = self.comparison.sweep
        if not self.rates or sweep["slo_attainment"].isna().any():
            return math.nan
        return representative_rate(sweep, wanted_shares(self.slo))

    @cached_property
    def at_rate(self) -> dict[str, dict[str, Any]]:
        """The sweep's row of each strategy at `rate`, means over seeds."""
        sweep = self.comparison.sweep
        own = sweep if math.isnan(self.rate) else sweep[sweep["rate_rps"] == self.rate]
        means = own.groupby("strategy", sort=False).mean(numeric_only=True)
        return {str(name): row for name, row in zip(means.index, rows_of(means), strict=True)}

    @cached_property
    def goodputs(self) -> dict[str, dict[str, Any]]:
        """The row of each strategy in the table of goodputs; nothing where rates are not swept."""
        if not self.is_swept:
            return {}
        return {str(row["strategy"]): row for row in rows_of(self.comparison.goodput)}

    @cached_property
    def frames(self) -> dict[str, dict[str, Columns]]:
        """All frames of one run of each strategy, at `rate`, of the first seed."""
        found: dict[str, dict[str, Columns]] = {}
        for cell in self.comparison.cells():
            is_it = math.isnan(self.rate) or cell.rate_rps == self.rate
            if cell.strategy not in found and is_it:
                found[cell.strategy] = dict(self.comparison.frames(cell))
        return found

    def order(self, name: str) -> tuple[float, bool]:
        """Return what strategies are sorted by, the most goodput first."""
        row = self.goodputs[name]
        below = row["censored"] == "below"
        return (-row["goodput_rps"] if not below else 0.0, row["censored"] != "above")

    def cost(self, name: str) -> tuple[float, float] | None:
        """Return the cost per hour and per million output tokens at what the strategy sustains.

        NaN for the tokens where no rate of the sweep is sustained: there is no such rate to
        divide by. None without a price.
        """
        cluster = self.comparison.scenario.environment.cluster
        if cluster.price_per_gpu_hour is None or "extra_cluster" in self.comparison.document:
            return None
        row = self.at_rate[name]
        rate, gpus = row["throughput_rps"], row["mean_gpus"]
        tokens = row["output_tokens_per_s"] / rate if rate else math.nan
        if self.is_swept:
            rate = self.goodputs[name]["goodput_rps"]
            gpus = self.goodputs[name]["mean_gpus"]
            if self.goodputs[name]["censored"] == "below":
                rate = 0.0
        per_hour = gpus * cluster.price_per_gpu_hour
        millions = rate * tokens * 3600 / 1e6
        return per_hour, per_hour / millions if millions else math.nan


def known(value: float) -> float:
    """Return a number; 0 in place of NaN."""
    return 0.0 if math.isnan(value) else value
