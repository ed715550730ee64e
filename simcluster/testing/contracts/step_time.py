"""The contract of step-time sources: `simcluster.roofline.sources.StepTimeFactory`."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, Final

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from simcluster.catalog.layers import Reach
from simcluster.config import Environment
from simcluster.errors import ConfigError
from simcluster.frames import unroll
from simcluster.roofline import StepShape, StepTime
from simcluster.roofline.sources import StepTimeFactory
from simcluster.runs.simulate import run
from simcluster.strategies import FuDG, NoDG, Strategy
from simcluster.testing.contracts.base import agreeing_run, crowd, laws
from simcluster.testing.laws import require
from simcluster.testing.specs import pcie4
from simcluster.testing.toy import ENGINES, STRICT, TOYS, toy_environment, toy_workload
from simcluster.units import TICKS_PER_S, IntArray

_SHORT = [(0.0, 60, 3), (0.001, 30, 4), (0.002, 90, 2), (0.003, 5, 6)]


@dataclasses.dataclass(frozen=True)
class Decodes:
    """A run of decode steps of sequences of equal length."""

    num_seqs: int
    context_len: int
    """Sequences, and tokens that each attends to in the first step."""
    num_steps: int
    """Steps of the run."""
    after: tuple[int, int]
    """Sequences and context of a step before it, whose GPU time may hide host work; (0, 0):
    none."""

    def shape(self, step: int, window: Reach | None) -> StepShape:
        """Return the shape of step number `step`, from 0."""
        context = self.context_len + step
        seen = context if window is None else window.of(context)
        return StepShape(
            self.num_seqs, self.num_seqs * context, (), self.num_seqs, self.num_seqs * seen
        )

    def window_tokens(self, window: Reach | None) -> IntArray | None:
        """Return the window-capped sums of each step; None without a window."""
        if window is None:
            return None
        sums = [self.shape(step, window).window_tokens for step in range(self.num_steps)]
        return np.array(sums, dtype=np.int64)

    def hidden_s(self, model: StepTime, window: Reach | None) -> float:
        """Return the GPU time of the step before (s); 0 if there is none or nothing overlaps."""
        num_seqs, context_len = self.after
        if not num_seqs or not model.overlaps_host:
            return 0.0
        return model.gpu_s(Decodes(num_seqs, context_len, 1, (0, 0)).shape(0, window))


CONTEXTS: st.SearchStrategy[int] = st.one_of(st.integers(1, 40), st.integers(1, 4000))
DECODES: st.SearchStrategy[Decodes] = st.builds(
    Decodes,
    st.one_of(st.integers(1, 8), st.integers(1, 300)),
    CONTEXTS,
    st.one_of(st.integers(1, 6), st.integers(1, 150)),
    st.one_of(st.just((0, 0)), st.tuples(st.integers(1, 64), CONTEXTS)),
)
"""Runs of decode steps, short and long."""
_RUN: Final = Decodes(3, 50, 20, (2, 30))


@st.composite
def chunk_shapes(draw: st.DrawFn) -> tuple[int, int, tuple[tuple[int, int], ...], int]:
    """Draw decodes, the context of each, chunks, and how many of these end a prompt."""
    num_decodes = draw(st.integers(0, 64))
    context_len = draw(CONTEXTS)
    chunk = st.tuples(st.integers(1, 600), st.one_of(st.just(0), st.integers(0, 1000)))
    chunks = draw(st.lists(chunk, min_size=1, max_size=4))
    return num_decodes, context_len, tuple(chunks), draw(st.integers(0, len(chunks)))


def shape_with_chunks(drawn: tuple[Any, ...], window: Reach | None) -> StepShape:
    """Return the shape that `chunk_shapes` draws, for a model with this sliding window."""
    num_decodes, context_len, chunks, num_ending = drawn
    seen = context_len if window is None else window.of(context_len)
    return StepShape(
        num_decodes,
        num_decodes * context_len,
        chunks,
        num_decodes + num_ending,
        num_decodes * seen,
    )


def require_time(time_s: float, what: str) -> None:
    """Require a time on the grid, above 0, as a float of Python or NumPy.

    Parameters
    ----------
    time_s : float
        A duration (s).
    what : str
        Its name, for the message.
    """
    require(isinstance(time_s, float), f"{what} is {type(time_s).__name__}, not a float")
    require(0.0 < time_s < np.inf, f"{what} = {time_s!r} is no duration")
    require(
        (time_s * TICKS_PER_S).is_integer(),
        f"{what} = {time_s!r} is not on the time grid: use simcluster.units.on_grid",
    )


class StepTimeContract:
    """Laws of every source of step times; derive a test class with the fixture `step_time`.

    The fixture `environments` may be overridden too: models and machines that the source knows, by
    default toy models with every kind of layer under five engines.

    - Durations are above 0 and on the time grid.
    - A run of steps takes what its steps take one by one, to the bit, wherever it is cut, and what
      was asked before changes nothing.
    - Host work is hidden only where the engine overlaps it, and never more than there is.
    - Results at the resolutions span, step and kernel are the same bits; steps unrolled from the
      record of a run end when they did.
    - Pipelines, and collectives that meet KV transfers, agree too or are refused in one line.

    Examples
    --------
    ::

        class TestMine(StepTimeContract):
            @pytest.fixture
            def step_time(self):
                return mine
    """

    tp_sizes: ClassVar[tuple[int, ...]] = (1, 2)
    """Tensor-parallel degrees that the source knows, 1 among them; override it."""

    @pytest.fixture
    def step_time(self) -> StepTimeFactory:
        """Return the source that is tested; override it."""
        raise NotImplementedError("give the contract a fixture `step_time` that returns the source")

    @pytest.fixture
    def environments(self) -> list[Environment]:
        """Return models and machines that the source knows."""
        return [toy_environment(engine, STRICT, model) for engine in ENGINES for model in TOYS]

    @laws(150)
    @given(decodes=DECODES, which=st.integers(0, 99))
    @example(decodes=_RUN, which=1)
    def test_a_run_of_decode_steps_is_its_steps(
        self,
        step_time: StepTimeFactory,
        environments: list[Environment],
        decodes: Decodes,
        which: int,
    ) -> None:
        """Scalar, vector and end times are the same bits, also where host work is hidden."""
        model, window = _one_of(step_time, environments, which)
        before_s = hidden_s = decodes.hidden_s(model, window)
        each = []
        for step in range(decodes.num_steps):
            shape = decodes.shape(step, window)
            each.append(model.step_s(shape, hidden_s))
            hidden_s = model.gpu_s(shape) if model.overlaps_host else 0.0
        first = decodes.shape(0, window)
        rest = (decodes.num_steps, before_s, decodes.window_tokens(window))
        steps = model.decode_steps_s(first.num_decodes, first.context_tokens, *rest)
        require(steps.dtype == np.float64, f"decode_steps_s gives {steps.dtype}, not float64")
        require(steps.tolist() == each, f"decode_steps_s {steps.tolist()}, step_s {each}")
        start_s = 1.25
        ends = model.decode_ends_s(start_s, first.num_decodes, first.context_tokens, *rest)
        sums = (np.cumsum(each) + start_s).tolist()
        require(ends == sums, f"decode_ends_s {ends}, sums of step_s {sums}")

    @laws(80)
    @given(decodes=DECODES.filter(lambda d: d.num_steps > 1), which=st.integers(0, 99))
    @example(decodes=_RUN, which=1)
    def test_a_run_may_be_cut_anywhere(
        self,
        step_time: StepTimeFactory,
        environments: list[Environment],
        decodes: Decodes,
        which: int,
    ) -> None:
        """The steps after a cut end when they would have without it."""
        model, window = _one_of(step_time, environments, which)

        def ends(start_s: float, part: Decodes) -> list[float]:
            first = part.shape(0, window)
            hidden_s, seen = part.hidden_s(model, window), part.window_tokens(window)
            rest = (part.num_steps, hidden_s, seen)
            return model.decode_ends_s(start_s, first.num_decodes, first.context_tokens, *rest)

        whole = ends(0.0, decodes)
        cut = decodes.num_steps // 2
        context_len = decodes.context_len + cut
        after = dataclasses.replace(
            decodes,
            context_len=context_len,
            num_steps=decodes.num_steps - cut,
            after=(decodes.num_seqs, context_len - 1),
        )
        require(ends(whole[cut - 1], after) == whole[cut:], "a cut changes the steps after it")

    @laws(150)
    @given(drawn=chunk_shapes(), decodes=DECODES, which=st.integers(0, 99))
    @example(drawn=(0, 1, ((7, 0),), 1), decodes=_RUN, which=1)
    def test_steps_take_time_on_the_grid_and_hide_host_work_where_the_engine_does(
        self,
        step_time: StepTimeFactory,
        environments: list[Environment],
        drawn: Any,
        decodes: Decodes,
        which: int,
    ) -> None:
        """The GPU's part is not longer than the step, and hidden work makes no step longer."""
        model, window = _one_of(step_time, environments, which)
        for shape in (shape_with_chunks(drawn, window), decodes.shape(0, window)):
            whole_s, gpu_s = model.step_s(shape), model.gpu_s(shape)
            require_time(whole_s, "step_s")
            require_time(gpu_s, "gpu_s")
            require(gpu_s <= whole_s, f"gpu_s {gpu_s} exceeds step_s {whole_s}")
            hidden_s = decodes.hidden_s(model, window) or gpu_s
            partly_s = model.step_s(shape, hidden_s)
            if model.overlaps_host:
                require_time(partly_s, "step_s with hidden host work")
                require(gpu_s <= partly_s <= whole_s, "more host work is hidden than there is")
            else:
                require(partly_s == whole_s, "host work is hidden, and overlaps_host is false")

    @laws(60)
    @given(prompt_len=st.integers(1, 4000), which=st.integers(0, 99))
    def test_a_prompt_alone_takes_what_its_step_takes(
        self,
        step_time: StepTimeFactory,
        environments: list[Environment],
        prompt_len: int,
        which: int,
    ) -> None:
        """Routers ask ``prefill_s``, instances ``step_s``."""
        model, _ = _one_of(step_time, environments, which)
        alone = StepShape(0, 0, ((prompt_len, 0),), 1, 0)
        require(model.prefill_s(prompt_len) == model.step_s(alone), "prefill_s is not step_s")

    @laws(60)
    @given(
        drawn=st.lists(chunk_shapes(), min_size=2, max_size=5),
        decodes=st.lists(DECODES, min_size=2, max_size=5),
        which=st.integers(0, 99),
    )
    @example(drawn=[], decodes=[_RUN, dataclasses.replace(_RUN, context_len=900)], which=1)
    def test_answers_do_not_depend_on_what_was_asked_before(
        self,
        step_time: StepTimeFactory,
        environments: list[Environment],
        drawn: list[Any],
        decodes: list[Decodes],
        which: int,
    ) -> None:
        """Asked in the other order, twice, and of another model, they are the same."""
        model, window = _one_of(step_time, environments, which)
        other, _ = _one_of(step_time, environments, which)
        shapes = [shape_with_chunks(d, window) for d in drawn]
        shapes += [d.shape(step, window) for d in decodes for step in (0, d.num_steps - 1)]
        first = [model.step_s(shape) for shape in shapes]
        backwards = [other.step_s(shape) for shape in reversed(shapes)][::-1]
        require(first == backwards, "the order of the questions decides")
        require(first == [model.step_s(shape) for shape in shapes], "a second answer is another")

    def test_resolutions_agree(
        self, step_time: StepTimeFactory, environments: list[Environment]
    ) -> None:
        """Prefill first and in chunks; unrolled steps end when the steps of the run did."""
        for tp_size in self.tp_sizes:
            for environment in environments:
                self._agrees(environment, step_time, tp_size)

    def _agrees(self, environment: Environment, step_time: StepTimeFactory, tp_size: int) -> None:
        first = NoDG(name="contract", tp_size=tp_size, max_num_seqs=8)
        strategies = [first, dataclasses.replace(first, scheduler="chunked", chunk_size=9)]
        for strategy in strategies:
            agreeing_run(environment, strategy, toy_workload(_SHORT), step_time=step_time)
            result = agreeing_run(environment, strategy, crowd(25), step_time=step_time)
            log = unroll.steps(result.columns, environment, step_time=step_time)
            by_step = run(
                environment, strategy, crowd(25), resolution="step", step_time=step_time
            ).columns["spans"]
            ends = [sorted(steps["end_s"].tolist()) for steps in (log, by_step)]
            require(ends[0] == ends[1], "unrolled steps end at other times than in the run")

    def test_pipelines_agree_or_are_refused(
        self, step_time: StepTimeFactory, environments: list[Environment]
    ) -> None:
        """Two stages with their own step times, or one line that says there are none."""
        for environment in environments:
            strategy = NoDG(name="contract", pp_size=2, max_num_seqs=8)
            _agrees_or_is_refused(environment, strategy, step_time)

    def test_shared_wires_agree_or_are_refused(
        self, step_time: StepTimeFactory, environments: list[Environment]
    ) -> None:
        """Collectives that meet KV transfers on PCIe, or one line that says it is not known."""
        wire = pcie4()
        for environment in environments:
            machines = dataclasses.replace(environment.cluster, fabric=wire, pcie=wire)
            strategy = FuDG(name="contract", tp_size=2, prefill_instances=1, decode_instances=1)
            where = dataclasses.replace(environment, cluster=machines)
            _agrees_or_is_refused(where, strategy, step_time)


def _one_of(
    step_time: StepTimeFactory, environments: list[Environment], which: int
) -> tuple[StepTime, Reach | None]:
    """New step times of one of `environments`, and the sliding window of its model."""
    environment = environments[which % len(environments)]
    return step_time(environment, 1), environment.model.spec.reach


def _agrees_or_is_refused(
    environment: Environment, strategy: Strategy, step_time: StepTimeFactory
) -> None:
    try:
        agreeing_run(environment, strategy, toy_workload(_SHORT), step_time=step_time)
    except ConfigError as error:
        require("\n" not in str(error), "an error is one line")
