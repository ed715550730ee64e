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
from simcluster.registry import Registry
from simcluster.roofline.base import StageTime, StepTime
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

    def stages(
        self, environment: Environment, tp_size: int, pp_size: int, *, key: str
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

        Raises
        ------
        ConfigError
            If the layers cannot be split so.
        """
        return None

    def beside_transfers(
        self, environment: Environment, tp_size: int, wire_share: float
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
        """
        return None


class RooflineSource(StepTimeSource):
    """Step times from first principles (`RooflineStepTime`), on the cluster's GPU and fabric."""

    def __call__(self, environment: Environment, tp_size: int) -> StepTime:
        """Return the step times of an instance on `tp_size` GPUs."""
        return roofline_step_time(environment, tp_size)

    def stages(
        self, environment: Environment, tp_size: int, pp_size: int, *, key: str
    ) -> tuple[StageTime, ...]:
        """Return the step times of each stage of a pipeline."""
        return roofline_stages(environment, tp_size, pp_size, key=key)

    def beside_transfers(
        self, environment: Environment, tp_size: int, wire_share: float
    ) -> StepTime:
        """Return the step times where collectives get `wire_share` of the fabric."""
        return roofline_step_time(environment, tp_size, wire_share)


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
