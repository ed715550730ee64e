"""A strategy: short prompts on small instances, long ones on large instances."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Literal

from pydantic import Field

from simcluster.request import Request
from simcluster.strategies import (
    Cluster,
    Deployment,
    Gateway,
    InstanceShape,
    RouterSettings,
    SchedulerSettings,
)
from simcluster.units import on_grid


class ByLength:
    """Where requests enter: each goes to the tier of its prompt."""

    def __init__(self, short_len: int, short: Gateway, long: Gateway) -> None:
        self._short_len, self._short, self._long = short_len, short, long

    def submit(self, request: Request) -> None:
        """Take `request`, which has just arrived."""
        is_short = request.prompt_len <= self._short_len
        (self._short if is_short else self._long).submit(request)


@dataclass(frozen=True, slots=True, kw_only=True)
class TwoTiers(SchedulerSettings, RouterSettings):
    """Two groups of instances that differ in their tensor-parallel degree."""

    kind: Literal["two-tiers"] = "two-tiers"
    short_len: Annotated[int, Field(ge=1)]
    """Longest prompt that goes to the small instances (tokens)."""
    short_instances: Annotated[int, Field(ge=1)] = 1
    """Small instances (tp_size GPUs)."""
    long_instances: Annotated[int, Field(ge=1)] = 1
    """Large instances."""
    long_tp_size: Annotated[int, Field(ge=1)] = 2
    """GPUs of a large instance."""

    def build(self, cluster: Cluster) -> Deployment:
        """Place both tiers, each behind a router of its own.

        Raises
        ------
        ConfigError
            If they do not fit the machines.
        """
        small = self.mixed_shape(cluster)
        large = replace(small, tp_size=self.long_tp_size)

        def tier(shape: InstanceShape, count: int) -> Gateway:
            instances = [cluster.place(shape, "mixed") for _ in range(count)]
            return Gateway(
                cluster.env,
                instances,
                self.make_router(),
                lambda request: cluster.on_finish(request),
                on_grid(self.status_interval_s),
                pending=self.make_queue(),
            )

        short, long = tier(small, self.short_instances), tier(large, self.long_instances)
        return Deployment(ByLength(self.short_len, short, long))
