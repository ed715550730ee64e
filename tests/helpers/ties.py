"""A cluster where everything ties: steps and transfers take whole coarse ticks."""

from __future__ import annotations

import dataclasses
from typing import Any, Final

import numpy as np
from hypothesis import strategies as st

from simcluster.config import Environment
from simcluster.roofline import StepShape, StepTimeSource
from simcluster.testing.step_times import ConstantStepTime

TICK: Final = 2.0**-6
"""A coarse tick of time (s)."""
TIES: Final[st.SearchStrategy[list[tuple[float, int, int]]]] = st.lists(
    st.tuples(
        st.one_of(st.just(0), st.integers(0, 25)).map(lambda k: k * TICK),
        # Loads that differ by little, so that one step more or less decides.
        st.integers(4, 6),
        st.integers(15, 40),
    ),
    min_size=3,
    max_size=8,
)
"""Requests for the toy cluster that arrive at coarse ticks and are nearly equal."""


def with_coarse_links(where: Environment) -> Environment:
    """Every link moves the KV of one token in one `TICK`, without latency."""
    links = {}
    for name in ("fabric", "network", "pcie"):
        link = getattr(where.cluster, name)
        bandwidth = where.model.kv_bytes_per_token / TICK
        links[name] = dataclasses.replace(link, bandwidth=bandwidth, efficiency=1.0, latency_s=0.0)
    return dataclasses.replace(where, cluster=dataclasses.replace(where.cluster, **links))


@dataclasses.dataclass(frozen=True)
class TickStage:
    """A stage that takes two coarse ticks whatever it does; host work before and after in ticks."""

    host_ticks: tuple[int, int]
    overlaps_host = False

    def host_s(self, shape: StepShape) -> tuple[float, float]:
        """Before and after."""
        return self.host_ticks[0] * TICK, self.host_ticks[1] * TICK

    def gpu_s(self, shape: StepShape) -> float:
        """Two ticks."""
        return 2 * TICK

    def decode_gpu_s(self, size: int, context: int, num_steps: int, window: Any) -> Any:
        """Two ticks each."""
        return np.full(num_steps, 2 * TICK)


@dataclasses.dataclass(frozen=True)
class Ticks(StepTimeSource):
    """Every step takes two coarse ticks; in a pipeline it takes them in each stage."""

    host_ticks: tuple[int, int] = (0, 0)

    def __call__(self, environment: Environment, tp_size: int) -> ConstantStepTime:
        """Two ticks."""
        return ConstantStepTime(2 * TICK)

    def stages(self, environment: Environment, tp_size: int, pp_size: int, *, key: str) -> Any:
        """Equal stages."""
        return tuple(TickStage(self.host_ticks) for _ in range(pp_size))
