"""Sources of step times: what says how long the steps of an instance take.

``STEP_TIMES`` holds them by the name that ``engine.step_times`` gives them. A source is a function
of environment and tensor-parallel degree; one that also knows the stages of pipelines, or how long
a step takes whose collectives share their wires with KV transfers, derives from `StepTimeSource`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Final

from simcluster.config import Environment
from simcluster.errors import ConfigError
from simcluster.registry import Registry
from simcluster.roofline.base import StageTime, StepTime
from simcluster.roofline.layout import Layout
from simcluster.roofline.of_environment import roofline_stages, roofline_step_time

StepTimeFactory = Callable[[Environment, int], StepTime]
"""From the environment and a tensor-parallel degree to the step times of an instance."""


class StepTimeSource(ABC):
    """Makes the step times of the instances of a run; it keeps nothing from run to run."""

    @abstractmethod
    def __call__(self, environment: Environment, tp_size: int) -> StepTime:
        """Return the step times of an instance on `tp_size` GPUs.

        Raises
        ------
        ConfigError
            If the source has none for this model, GPU, engine or degree.
        """

    def laid_out(self, environment: Environment, layout: Layout) -> StepTime | None:
        """Return the step times of an instance of `layout`; None if the source knows none.

        One that knows tensor parallelism alone has those of plain layouts.
        """
        return self(environment, layout.tp_size) if layout.is_plain else None

    def stages(
        self,
        environment: Environment,
        tp_size: int,
        pp_size: int,
        *,
        key: str,
        layout: Layout | None = None,
    ) -> tuple[StageTime, ...] | None:
        """Return the step times of each stage of a pipeline; None if the source knows none.

        Parameters
        ----------
        environment : Environment
            Model, machines, engine.
        tp_size, pp_size : int
            GPUs of a stage, and stages.
        key : str
            Scenario key of `pp_size`, for messages.
        layout : Layout, optional
            That of a stage, where it is more than tensor parallelism; given to sources alone that
            know it (`laid_out`).

        Raises
        ------
        ConfigError
            If the layers cannot be split so.
        """
        return None

    def beside_transfers(
        self,
        environment: Environment,
        tp_size: int,
        wire_share: float,
        layout: Layout | None = None,
    ) -> StepTime | None:
        """Return the step times where collectives get a share of the wires; None if unknown.

        Parameters
        ----------
        environment : Environment
            Model, machines, engine.
        tp_size : int
            GPUs of the instance, >= 2.
        wire_share : float
            Share of the fabric's bandwidth that KV transfers leave to the collectives, above 0 and
            below 1.
        layout : Layout, optional
            As in `stages`.
        """
        return None


class RooflineSource(StepTimeSource):
    """Step times from first principles (`RooflineStepTime`), on the cluster's GPU and fabric."""

    def __call__(self, environment: Environment, tp_size: int) -> StepTime:
        """Return the step times of an instance on `tp_size` GPUs."""
        return roofline_step_time(environment, tp_size)

    def laid_out(self, environment: Environment, layout: Layout) -> StepTime:
        """Return the step times of an instance of `layout`."""
        return roofline_step_time(environment, layout.tp_size, layout=layout)

    def stages(
        self,
        environment: Environment,
        tp_size: int,
        pp_size: int,
        *,
        key: str,
        layout: Layout | None = None,
    ) -> tuple[StageTime, ...]:
        """Return the step times of each stage of a pipeline."""
        return roofline_stages(environment, tp_size, pp_size, key=key, layout=layout)

    def beside_transfers(
        self,
        environment: Environment,
        tp_size: int,
        wire_share: float,
        layout: Layout | None = None,
    ) -> StepTime:
        """Return the step times where collectives get `wire_share` of the fabric."""
        return roofline_step_time(environment, tp_size, wire_share, layout)


class _OfFunction(StepTimeSource):
    """A plain function as a source: it knows neither stages nor shared wires."""

    def __init__(self, factory: StepTimeFactory) -> None:
        self._factory = factory

    def __call__(self, environment: Environment, tp_size: int) -> StepTime:
        """Return what the function returns."""
        return self._factory(environment, tp_size)


STEP_TIMES: Final[Registry[StepTimeFactory]] = Registry(
    "simcluster.step_times", {"roofline": RooflineSource()}
)
"""Sources of step times by the name that ``engine.step_times`` gives them."""


def source_of(environment: Environment, factory: StepTimeFactory | None = None) -> StepTimeSource:
    """Return `factory` as a source of step times; by default the one that `environment` names.

    Parameters
    ----------
    environment : Environment
        Its `step_times` is a key of ``STEP_TIMES``.
    factory : callable, optional
        A function, or a source already.
    """
    if factory is None:
        factory = STEP_TIMES[environment.step_times]
    return factory if isinstance(factory, StepTimeSource) else _OfFunction(factory)


def times_of(
    source: StepTimeSource,
    environment: Environment,
    layout: Layout,
    *,
    key: str = "engine.step_times",
) -> StepTime:
    """Return the step times of an instance of `layout` by `source`.

    Parameters
    ----------
    source : StepTimeSource
        What makes them.
    environment : Environment
        Model, machines, engine.
    layout : Layout
        That of the instance.
    key : str
        Scenario key for messages: that of ``ep_size``.

    Raises
    ------
    ConfigError
        If the source knows tensor parallelism alone and the layout has more.
    """
    times = source.laid_out(environment, layout)
    if times is None:
        rule = "the source of step times knows neither expert nor data parallelism"
        remedy = 'Use ep_size = 1 and dp_size = 1, or engine.step_times = "roofline".'
        raise ConfigError(key, layout.ep_size, rule, remedy)
    return times


def beyond_tp(layout: Layout) -> dict[str, Layout]:
    """Return the arguments that tell a source of a layout of more than tensor parallelism."""
    return {} if layout.is_plain else {"layout": layout}
