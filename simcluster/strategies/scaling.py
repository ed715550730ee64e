"""Settings of instances that come and go, and what makes autoscalers of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from simcluster.config import Settings
from simcluster.engine.groups.autoscaler import (
    DISK_BYTES_PER_S,
    Autoscaler,
    Group,
    Signal,
    Threshold,
)
from simcluster.engine.groups.cluster import Cluster
from simcluster.engine.shape import InstanceShape
from simcluster.errors import ConfigError
from simcluster.units import on_grid


@dataclass(frozen=True, slots=True, kw_only=True)
class ScalingSettings(Settings):
    """When instances are started and drained."""

    max_instances: Annotated[int | None, Field(ge=1)] = None
    """Most instances in service; default: as many as the GPUs hold."""
    interval_s: Annotated[float, Field(ge=0.001, le=86_400)] = 30.0
    """How often the load is looked at (s)."""
    cooldown_s: Annotated[float, Field(ge=0, le=86_400)] = 60.0
    """Shortest time between two changes (s)."""
    start_up_s: Annotated[float | None, Field(ge=0, le=86_400)] = None
    """Time from taking the GPUs to serving (s); default: the weights at 375 MB/s from a local disk,
    all of the start-up included."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MitosisSettings(ScalingSettings):
    """EcoServe's scaling of macro instances (EcoServe, mitosis scaling)."""

    lower: Annotated[int, Field(ge=1)]
    """N_l: instances that split off, and a macro instance's least."""
    upper: Annotated[int, Field(ge=1)]
    """N_u: most instances of a macro instance."""
    up_at: Annotated[float, Field(gt=0, le=1000)] = 1.0
    """One more instance where the mean TTFT exceeds this share of its target."""
    scale_down: bool = True
    """Drain instances where the saved TPOT allows it."""

    def __post_init__(self) -> None:
        """Check that a split leaves two macro instances of at least N_l.

        Raises
        ------
        ConfigError
            If N_l is more than (N_u + 1) / 2.
        """
        if 2 * self.lower > self.upper + 1:
            rule = (
                f"is more than (upper + 1) / 2 = {(self.upper + 1) / 2:g}: a macro instance of "
                f"{self.upper + 1} cannot split into two of at least {self.lower}"
            )
            remedy = f"Use at most {(self.upper + 1) // 2}, or a larger upper."
            raise ConfigError("strategy.mitosis.lower", self.lower, rule, remedy)


@dataclass(frozen=True, slots=True, kw_only=True)
class ThresholdSettings(ScalingSettings):
    """A plain autoscaler by the unfinished requests per instance."""

    up: Annotated[float, Field(gt=0, le=1_000_000)]
    """More instances above this (requests each)."""
    down: Annotated[float, Field(ge=0)]
    """Fewer instances below this (requests each)."""
    min_instances: Annotated[int, Field(ge=1)] = 1
    """Fewest instances in service."""

    def __post_init__(self) -> None:
        """Check that thresholds and bounds do not cross.

        Raises
        ------
        ConfigError
            If `down` is not below `up`, or the least is more than the most.
        """
        if self.down >= self.up:
            raise ConfigError(
                "strategy.autoscale.down",
                self.down,
                f"must be below up ({self.up:g}), or the same load asks for more and fewer",
                "Lower it.",
            )
        if self.max_instances is not None and self.min_instances > self.max_instances:
            raise ConfigError(
                "strategy.autoscale.min_instances",
                self.min_instances,
                f"is more than max_instances ({self.max_instances})",
                "Lower it, or raise max_instances.",
            )


def start(
    settings: ScalingSettings,
    cluster: Cluster,
    shape: InstanceShape,
    role: str,
    group: Group,
    signal: Signal,
    *,
    least: int,
) -> Autoscaler:
    """Let `group` be scaled from now on.

    Parameters
    ----------
    settings : ScalingSettings
        When instances come and go.
    cluster, shape, role
        Where they are placed, what they are made of, their role.
    group : Group
        Where they serve.
    signal : callable
        What is wanted.
    least : int
        Fewest instances in service.
    """
    most = settings.max_instances
    return Autoscaler(
        cluster,
        shape,
        role,
        group,
        signal,
        least=least,
        most=most if most is not None else len(cluster.instances) + cluster.num_that_fit(shape),
        interval_s=on_grid(settings.interval_s),
        cooldown_s=on_grid(settings.cooldown_s),
        start_up_s=on_grid(start_up_s(settings.start_up_s, cluster)),
    )


def start_up_s(given: float | None, cluster: Cluster) -> float:
    """Return how long an instance takes to serve (s): as `given`, else from its weights."""
    if given is not None:
        return given
    model = cluster.environment.model
    return model.weight_bytes / DISK_BYTES_PER_S


def scale_by_load(
    settings: ThresholdSettings,
    cluster: Cluster,
    shape: InstanceShape,
    role: str,
    group: Group,
    waiting: Callable[[], int],
) -> Autoscaler:
    """Let `group` be scaled by its load from now on.

    Parameters
    ----------
    settings : ThresholdSettings
        When instances come and go.
    cluster, shape, role
        Where they are placed, what they are made of, their role.
    group : Group
        Where they serve.
    waiting : callable
        Gives the number of requests that wait in front of it.

    Raises
    ------
    ConfigError
        If the group has fewer instances than it may.
    """
    count = len(group.instances)
    if count < settings.min_instances:
        raise ConfigError(
            shape.key("autoscale.min_instances"),
            settings.min_instances,
            f"is more than the {count} instances at the start",
            "Start with as many, or lower it.",
        )
    signal = Threshold(group, waiting, settings.up, settings.down)
    return start(settings, cluster, shape, role, group, signal, least=settings.min_instances)
