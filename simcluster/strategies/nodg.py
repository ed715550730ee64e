"""NoDG: every instance prefills and decodes, interleaved (vLLM, Sarathi-Serve)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Final, Literal

from pydantic import Field

from simcluster.engine.groups.cluster import Cluster, Deployment
from simcluster.engine.groups.front_end import Gateway
from simcluster.strategies.base import RouterSettings, SchedulerSettings, count_that_fits
from simcluster.strategies.scaling import ThresholdSettings, scale_by_load
from simcluster.units import on_grid

SCHEDULER_OF: Final = {"nodg": "prefill-priority", "chunked": "chunked"}
"""Schedulers by the name that planners give to a family of equal instances."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NoDG(SchedulerSettings, RouterSettings):
    """Equal instances behind a router; no disaggregation.

    With ``scheduler = "prefill-priority"`` as vLLM 0.7.3 (Kwon et al., SOSP 2023, section 4.5),
    with ``"chunked"`` as Sarathi-Serve (Agrawal et al., OSDI 2024, section 4.3).
    """

    kind: Literal["nodg"] = "nodg"
    instances: Annotated[int | None, Field(ge=1)] = None
    """Instances; default: as many as the GPUs hold."""
    autoscale: ThresholdSettings | None = None
    """Instances come and go with the load; default: they stay."""

    def build(self, cluster: Cluster) -> Deployment:
        """Place the instances and put a router in front of them.

        Raises
        ------
        ConfigError
            If they do not fit, or `chunk_size` is given to a scheduler without chunks.
        """
        shape = self.mixed_shape(cluster)
        count = count_that_fits(cluster, shape, self.instances)
        instances = [cluster.place(shape, "mixed") for _ in range(count)]
        gateway = Gateway(
            cluster.env,
            instances,
            self.make_router(),
            lambda r: cluster.on_finish(r),
            on_grid(self.status_interval_s),
            pending=self.make_queue(),
        )
        if self.autoscale is not None:
            scale_by_load(
                self.autoscale, cluster, shape, "mixed", gateway, lambda: len(gateway.pending)
            )
        return Deployment(gateway)
