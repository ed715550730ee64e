"""PaDG: prefill and decode on the same instance, separated in time (EcoServe)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from simcluster.engine.cluster import Cluster, Deployment
from simcluster.engine.macro_instance import MacroInstance
from simcluster.errors import ConfigError
from simcluster.routing.rolling_activation import RollingActivation
from simcluster.strategies.base import CommonSettings, count_that_fits
from simcluster.units import on_grid


@dataclass(frozen=True, slots=True, kw_only=True)
class PaDG(CommonSettings):
    """One macro instance under rolling activation (PAPERS 1.2 to 1.6).

    Routing follows the paper's Algorithm 1; instances prefill first (no chunks); output is held
    back during an instance's prefill window. Where the paper leaves something open, or leaves a
    request pending for ever:

    - a request belongs to the window in which it was *routed* (the paper compares its arrival,
      which is earlier where it waited in front);
    - the slack is judged over the requests that decode, not over those yet to prefill or preempted;
    - KV memory is checked together with that of the requests routed and not yet admitted;
    - a prompt whose predicted prefill alone exceeds the TTFT target passes on no instance and is
      rejected.
    """

    kind: Literal["padg"] = "padg"
    instances: Annotated[
        int | None, Field(ge=1, description="Instances in the ring; default: as many as fit.")
    ] = None
    slack: Annotated[
        Literal["mean", "max", "min"],
        Field(description="How the saved TPOT of the existing requests is judged."),
    ] = "mean"
    hold_output: Annotated[
        bool, Field(description="Hold the instance's output back during its prefill window.")
    ] = True

    def build(self, cluster: Cluster) -> Deployment:
        """Place the ring and its macro-instance scheduler.

        Raises
        ------
        ConfigError
            If a target is missing: the routing needs both.
        """
        slo = cluster.environment.slo
        for key, value in (("slo.ttft_s", slo.ttft_s), ("slo.tpot_s", slo.tpot_s)):
            if value is None:
                raise ConfigError(
                    key, None, f"strategy {self.name!r} routes by it (padg)", "Give a target."
                )
        assert slo.ttft_s is not None
        assert slo.tpot_s is not None
        shape = self.shape()
        count = count_that_fits(cluster, shape, self.instances)
        instances = [cluster.place(shape, "mixed") for _ in range(count)]
        ttft_s = on_grid(slo.ttft_s)
        macro = MacroInstance(
            cluster.env,
            instances,
            RollingActivation(count, ttft_s=ttft_s, tpot_s=on_grid(slo.tpot_s), slack=self.slack),
            ttft_s=ttft_s,
            predict_s=instances[0].prefill_s,
            hold_output=self.hold_output,
            recorder=cluster.recorder,
            on_finish=lambda r: cluster.on_finish(r),
        )
        return Deployment(macro, on_end=(macro.close,))
