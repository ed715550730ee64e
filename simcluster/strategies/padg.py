"""PaDG: prefill and decode on the same instance, separated in time (EcoServe)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from simcluster.engine.groups.autoscaler import Mitosis
from simcluster.engine.groups.cluster import Cluster, Deployment
from simcluster.engine.groups.macro_instance import MacroInstance
from simcluster.engine.groups.overall import OverallScheduler
from simcluster.engine.instance import InstanceLike
from simcluster.errors import ConfigError
from simcluster.registry import NameIn
from simcluster.rng import stream
from simcluster.routing.prefill_predictor import PrefillPredictor, from_profile
from simcluster.routing.rolling_activation import (
    CONSTRAINTS,
    CodeActivation,
    FixedWindows,
    PaperActivation,
    RollingActivation,
    slack_statistic,
)
from simcluster.sched import SCHEDULERS
from simcluster.strategies.base import SchedulerSettings, count_that_fits
from simcluster.strategies.scaling import MitosisSettings, start
from simcluster.units import on_grid


@dataclass(frozen=True, slots=True, kw_only=True)
class PaDG(SchedulerSettings):
    """Macro instances under rolling activation (EcoServe, section 3).

    With ``variant = "paper"`` routing follows Algorithm 1, with ``"code"`` the scheduler that the
    authors released. Instances prefill first; output is held back during an instance's prefill
    window. Where the paper leaves something open, or leaves a request pending for ever:

    - a request belongs to the window in which it was *routed* (the paper compares its arrival,
      which is earlier where it waited in front);
    - the slack is judged over the requests that decode, not over those yet to prefill or preempted;
    - KV memory is checked together with that of the requests routed and not yet admitted;
    - a prompt whose predicted prefill alone exceeds the TTFT target passes on no instance and is
      rejected.
    """

    kind: Literal["padg"] = "padg"
    scheduler: Annotated[str | None, NameIn(SCHEDULERS)] = "prefill-priority"
    """What an instance runs next; default: prefills first, as in EcoServe, with any engine."""
    instances: Annotated[int | None, Field(ge=1)] = None
    """Instances, at the start if they scale; default: as many as fit."""
    macro_instances: Annotated[int, Field(ge=1)] = 1
    """Macro instances that they are divided into, at the start if they scale."""
    mitosis: MitosisSettings | None = None
    """Macro instances grow, split, shrink and merge; default: they stay as they are."""
    variant: Literal["paper", "code"] = "paper"
    """Routing by Algorithm 1 of the paper, where requests can wait, or as in the released code,
    where the next instance gets what the current one cannot take."""
    slack: str | None = None
    """How the saved TPOT of the running requests is judged: mean, max, min or quantile:q with q
    from 0 to 1; default: mean in the paper, max in the code."""
    next_instance: Literal["cyclic", "random"] = "cyclic"
    """Which instance's window comes next: in turn, or drawn."""
    window: str = "adaptive"
    """When a window passes on: adaptive (by the variant's rule), or fixed:FRACTION of the TTFT
    target after it opened, unchecked."""
    constraints: tuple[Literal["ttft", "tpot", "kv"], ...] = CONSTRAINTS
    """Constraints of Algorithm 1 that are checked."""
    prefill_error: Annotated[float, Field(ge=0, le=5)] = 0.0
    """Error of the predicted prefill time: standard deviation of the logarithm of a random factor
    per request."""
    status_interval_s: Annotated[float, Field(ge=0, le=86_400)] = 0.0
    """Instances report their state every so often (s); 0: at every step."""
    hold_output: bool = True
    """Hold the instance's output back during its prefill window."""

    def __post_init__(self) -> None:
        """Check what one key alone cannot tell.

        Raises
        ------
        ConfigError
            If `slack` or `window` is not understood, or constraints are left out where none is
            checked.
        """
        key = f"strategy.{self.name}."
        if self.slack is not None:
            try:
                slack_statistic(self.slack)
            except ValueError:
                raise ConfigError(
                    key + "slack",
                    self.slack,
                    "must be mean, max, min or quantile:q with q from 0 to 1",
                    'Write slack = "quantile:0.1" for the lowest tenth.',
                ) from None
        if self.window != "adaptive" and self.fraction is None:
            raise ConfigError(
                key + "window",
                self.window,
                "must be adaptive or fixed:FRACTION with a fraction above 0",
                'Write window = "fixed:0.5" for half the TTFT target.',
            )
        if (self.variant == "code" or self.fraction) and self.constraints != CONSTRAINTS:
            raise ConfigError(
                key + "constraints",
                list(self.constraints),
                'are those of variant = "paper" with window = "adaptive"',
                "Leave them out.",
            )

    @property
    def fraction(self) -> float | None:
        """Length of a fixed window as a share of S_TTFT; None if it is not fixed."""
        kind, _, number = self.window.partition(":")
        try:
            share = float(number)
        except ValueError:
            return None
        return share if kind == "fixed" and 0.0 < share < np.inf else None

    def build(self, cluster: Cluster) -> Deployment:
        """Place the ring and its macro-instance scheduler.

        Raises
        ------
        ConfigError
            If a target is missing (the routing needs both), or the instances do not fit the
            machines or the bounds of their macro instances.
        """
        ttft_s, tpot_s = self._targets(cluster)
        shape = self.mixed_shape(cluster)
        count = count_that_fits(cluster, shape, self.instances)
        sizes = self._sizes(count)
        instances = [cluster.place(shape, "mixed") for _ in range(count)]
        predict_s = self._predictor(instances[0], cluster.seed)

        def make(ring: Sequence[InstanceLike]) -> MacroInstance:
            number = next(cluster.macro_ids)
            return MacroInstance(
                cluster.env,
                ring,
                self._activation(len(ring), ttft_s, tpot_s, cluster.seed, number),
                ttft_s=ttft_s,
                predict_s=predict_s,
                hold_output=self.hold_output,
                windows=cluster.recorder.windows,
                on_finish=lambda r: cluster.on_finish(r),
                status_interval_s=on_grid(self.status_interval_s),
                macro_id=number,
                pending=self.make_queue(),
            )

        if len(sizes) == 1 and self.mitosis is None:
            macro = make(instances)
            return Deployment(macro, on_end=(macro.close,))
        ends = list(accumulate(sizes))
        bounds = None if self.mitosis is None else (self.mitosis.lower, self.mitosis.upper)
        overall = OverallScheduler(
            cluster.env,
            [instances[end - size : end] for end, size in zip(ends, sizes, strict=True)],
            make,
            lambda r: cluster.on_finish(r),
            bounds=bounds,
            log=cluster.recorder.scaling,
        )
        if self.mitosis is not None:
            rules = self.mitosis
            signal = Mitosis(overall, ttft_s, up_at=rules.up_at, scale_down=rules.scale_down)
            start(rules, cluster, shape, "mixed", overall, signal, least=rules.lower)
        return Deployment(overall, on_end=(overall.close,))

    def _sizes(self, count: int) -> list[int]:
        """Return the sizes of the macro instances, as even as can be."""
        number, key = self.macro_instances, f"strategy.{self.name}."
        if number > count:
            raise ConfigError(
                key + "macro_instances",
                number,
                f"is more than the {count} instances",
                "Each needs one at least.",
            )
        sizes = [count // number + (k < count % number) for k in range(number)]
        rules = self.mitosis
        if rules is not None and not rules.lower <= sizes[-1] <= sizes[0] <= rules.upper:
            raise ConfigError(
                key + ("instances" if number == 1 else "macro_instances"),
                count if number == 1 else number,
                f"macro instances of {sizes[-1]} to {sizes[0]} instances are outside of "
                f"mitosis.lower = {rules.lower} to mitosis.upper = {rules.upper}",
                "Start with other numbers, or move the bounds.",
            )
        return sizes

    def _targets(self, cluster: Cluster) -> tuple[float, float]:
        """Return the TTFT and the TPOT target (s) of the strictest class, on the grid."""
        slo = cluster.environment.slo.strictest()
        for key, value in (("slo.ttft_s", slo.ttft_s), ("slo.tpot_s", slo.tpot_s)):
            if value is None:
                raise ConfigError(
                    key, None, f"strategy {self.name!r} routes by it (padg)", "Give a target."
                )
        assert slo.ttft_s is not None
        assert slo.tpot_s is not None
        return on_grid(slo.ttft_s), on_grid(slo.tpot_s)

    def _activation(
        self, count: int, ttft_s: float, tpot_s: float, seed: int, macro_id: int = 0
    ) -> RollingActivation:
        rng = None
        if self.next_instance == "random":
            rng = stream(seed, "rolling-activation", str(macro_id))
        if self.fraction is not None:
            return FixedWindows(
                count,
                ttft_s=ttft_s,
                tpot_s=tpot_s,
                rng=rng,
                length_s=on_grid(self.fraction * ttft_s),
            )
        if self.variant == "code":
            return CodeActivation(
                count, ttft_s=ttft_s, tpot_s=tpot_s, slack=self.slack or "max", rng=rng
            )
        return PaperActivation(
            count,
            ttft_s=ttft_s,
            tpot_s=tpot_s,
            slack=self.slack or "mean",
            rng=rng,
            constraints=self.constraints,
        )

    def _predictor(self, instance: InstanceLike, seed: int) -> PrefillPredictor:
        prefill_s: Callable[[int], float] = instance.prefill_s
        if self.variant == "code":
            prefill_s = from_profile(prefill_s)
        return PrefillPredictor(prefill_s, self.prefill_error, stream(seed, "prefill-predictor"))
