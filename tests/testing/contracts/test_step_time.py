"""The contract of step-time sources: ours keep it, and it notices those that do not.

Programs that are wrong on purpose stand beside the law that notices each.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from simcluster.config import Environment
from simcluster.roofline import STEP_TIMES, StageTime, StepShape, StepTime
from simcluster.roofline.sources import StepTimeFactory, StepTimeSource
from simcluster.testing.contracts import (
    StepTimeContract,
)
from simcluster.testing.contracts.base import notices
from simcluster.testing.step_times import ConstantStepTime, LinearStepTime, same_for_all
from simcluster.testing.toy import toy_environment
from simcluster.units import FloatArray, on_grid

SOURCES: dict[str, StepTimeFactory] = {
    **STEP_TIMES,
    "linear": same_for_all(LinearStepTime(1e-5, 1e-4, per_context_token_s=1e-8)),
    "constant": same_for_all(ConstantStepTime(1e-3)),
}
"""Those that are registered, and those of `simcluster.testing`."""


@pytest.mark.parametrize("name", list(SOURCES))
class TestOurStepTimes(StepTimeContract):
    """Every source that is registered, and those on paper."""

    @pytest.fixture
    def step_time(self, name: str) -> StepTimeFactory:
        """Return the source."""
        return SOURCES[name]


class Linear(LinearStepTime):
    """Steps of 0.1 ms and more; right as it is."""

    def __init__(self) -> None:
        super().__init__(1e-5, 1e-4, per_context_token_s=1e-8)


class PaysAtTheStart(Linear):
    """A run of steps costs something once: it is not additive."""

    def decode_steps_s(self, *args: Any, **kwargs: Any) -> FloatArray:
        """A millisecond more in the first step."""
        steps = super().decode_steps_s(*args, **kwargs)
        steps[0] += on_grid(1e-3)
        return steps


class OffTheGrid(Linear):
    """Multiplies where it should round."""

    def step_s(self, shape: StepShape, hidden_s: float = 0.0) -> float:
        """A third of the time."""
        return super().step_s(shape) / 3

    def decode_steps_s(self, *args: Any, **kwargs: Any) -> FloatArray:
        """A third of the time."""
        return super().decode_steps_s(*args, **kwargs) / 3


class EndsElsewhere(Linear):
    """End times in single precision."""

    def decode_ends_s(self, start_s: float, *args: Any, **kwargs: Any) -> list[float]:
        """Sums that are rounded."""
        ends = super().decode_ends_s(start_s, *args, **kwargs)
        return np.array(ends, dtype=np.float32).astype(np.float64).tolist()


class SinglePrecision(Linear):
    """Gives NumPy's short floats."""

    def decode_steps_s(self, *args: Any, **kwargs: Any) -> Any:
        """In single precision."""
        return super().decode_steps_s(*args, **kwargs).astype(np.float32)


class CachesBySize(Linear):
    """Remembers a step by its sequences alone."""

    def __init__(self) -> None:
        super().__init__()
        self._known: dict[int, float] = {}

    def step_s(self, shape: StepShape, hidden_s: float = 0.0) -> float:
        """What it took the first time."""
        return self._known.setdefault(shape.num_tokens, super().step_s(shape))


class NoTime(Linear):
    """Takes no time for short prompts."""

    def step_s(self, shape: StepShape, hidden_s: float = 0.0) -> float:
        """Nothing up to ten tokens."""
        return 0.0 if shape.chunks and shape.num_tokens <= 10 else super().step_s(shape)


class HidesTooMuch(Linear):
    """Hides host work though its engine does not."""

    def step_s(self, shape: StepShape, hidden_s: float = 0.0) -> float:
        """Less what was done before."""
        return max(on_grid(1e-6), super().step_s(shape) - hidden_s / 2)


class AnotherPrefill(Linear):
    """Tells routers another time than instances."""

    def prefill_s(self, prompt_len: int) -> float:
        """A tick more."""
        return super().prefill_s(prompt_len) + on_grid(1e-9)


class OtherKernels(Linear):
    """Its kernels take another time than its steps."""

    def kernels(self, shape: StepShape) -> Any:
        """Those of a step with another token."""
        return super().kernels(shape._replace(chunks=((shape.num_tokens + 1, 0),), num_decodes=0))


class Stage(Linear):
    """A stage whose runs of steps take longer than the steps."""

    def host_s(self, shape: StepShape) -> tuple[float, float]:
        """No host work."""
        return 0.0, 0.0

    def decode_gpu_s(
        self, size: int, context: int, num_steps: int, window: Any = None
    ) -> FloatArray:
        """A tick more each."""
        return self.decode_steps_s(size, context, num_steps) + on_grid(1e-9)


class Uneven(StepTimeSource):
    """Right for an instance alone, wrong for pipelines and beside transfers."""

    def __call__(self, environment: Environment, tp_size: int) -> StepTime:
        """Right."""
        return Linear()

    def stages(
        self, environment: Environment, tp_size: int, pp_size: int, *, key: str
    ) -> tuple[StageTime, ...]:
        """Wrong stages."""
        return (Stage(),) * pp_size

    def beside_transfers(
        self, environment: Environment, tp_size: int, wire_share: float
    ) -> StepTime:
        """Not additive."""
        return PaysAtTheStart()


@pytest.mark.parametrize("law", ["pipelines", "shared_wires"])
def test_the_step_time_contract_notices_wrong_stages_and_wrong_shares(law: str) -> None:
    """What a source says it knows is tried too."""
    given = {"step_time": Uneven(), "environments": [toy_environment()]}
    notices(StepTimeContract, f"{law}_agree_or_are_refused", "requests", **given)


RUN = "a_run_of_decode_steps_is_its_steps"
GRID = "steps_take_time_on_the_grid_and_hide_host_work_where_the_engine_does"
WRONG_STEP_TIMES = [
    (PaysAtTheStart, RUN, "decode_steps_s"),
    (PaysAtTheStart, "a_run_may_be_cut_anywhere", "a cut changes the steps after it"),
    (PaysAtTheStart, "resolutions_agree", "requests"),
    (OffTheGrid, GRID, "is not on the time grid"),
    (EndsElsewhere, RUN, "decode_ends_s"),
    (SinglePrecision, RUN, "float32, not float64"),
    (CachesBySize, "answers_do_not_depend_on_what_was_asked_before", "the order of the questions"),
    (NoTime, GRID, "is no duration"),
    (HidesTooMuch, GRID, "overlaps_host is false"),
    (AnotherPrefill, "a_prompt_alone_takes_what_its_step_takes", "prefill_s is not step_s"),
    (OtherKernels, "resolutions_agree", "requests"),
]


@pytest.mark.parametrize(
    ("wrong", "law", "message"), WRONG_STEP_TIMES, ids=[w[0].__name__ for w in WRONG_STEP_TIMES]
)
def test_the_step_time_contract_notices(wrong: type, law: str, message: str) -> None:
    """One law of it at least, in words that say what is wrong."""

    def source(environment: Environment, tp_size: int) -> StepTime:
        made: StepTime = wrong()
        return made

    notices(
        StepTimeContract,
        law,
        message,
        step_time=source,
        environments=[toy_environment()],
    )


def test_the_step_time_contract_holds_for_the_right_one() -> None:
    """Or what is noticed above would be something else."""
    given = {"step_time": same_for_all(Linear()), "environments": [toy_environment()]}
    for law in {law for _, law, _ in WRONG_STEP_TIMES}:
        getattr(StepTimeContract(), f"test_{law}")(**given)
