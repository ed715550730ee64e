"""The closed form of dispatch against the simulation of every kernel, queue limit included."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Any

import simpy
from hypothesis import example, given
from hypothesis import strategies as st

from simcluster.roofline.dispatch import Line, TickRun, eager_lines, envelope, graph_line
from simcluster.testing.examples import examples


def brute_force_end(
    issue: Sequence[float], run: Sequence[float], queue_depth: int | None = None
) -> float:
    """When the last kernel ends, kernel by kernel.

    The CPU issues kernels one after the other; the GPU runs them in order, none before it is
    issued. With a `queue_depth` the CPU waits while as many issued kernels have not yet started.
    """
    starts: list[float] = []
    cpu = gpu = 0.0
    for k, (issue_s, run_s) in enumerate(zip(issue, run, strict=True)):
        if queue_depth is not None and k >= queue_depth:
            cpu = max(cpu, starts[k - queue_depth])
        cpu += issue_s
        starts.append(max(cpu, gpu))
        gpu = starts[-1] + run_s
    return gpu


def simpy_end(issue: Sequence[float], run: Sequence[float], queue_depth: int) -> float:
    """Like `brute_force_end` with processes and a bounded store instead of recurrences."""
    env = simpy.Environment()
    queue = simpy.Store(env)
    slots = simpy.Container(env, queue_depth, queue_depth)

    def cpu() -> Generator[simpy.Event, Any, None]:
        for issue_s, run_s in zip(issue, run, strict=True):
            yield slots.get(1)
            yield env.timeout(issue_s)
            yield queue.put(run_s)

    def gpu() -> Generator[simpy.Event, Any, None]:
        for _ in run:
            run_s = yield queue.get()
            yield slots.put(1)
            yield env.timeout(run_s)

    env.process(cpu())
    done = env.process(gpu())
    env.run(done)
    return env.now


def unroll(runs: Sequence[TickRun], full: float, windowed: float) -> list[float]:
    """GPU times of all kernels of all layers."""
    times: list[float] = []
    for run in runs:
        layer = list(run.run_ticks)
        if run.attention >= 0:
            layer[run.attention] = (full, windowed)[run.kind]
        times += layer * run.repeat
    return times


def value(lines: Sequence[Line], full: float, windowed: float) -> float:
    """Maximum of `lines`."""
    return max(const + counts[0] * full + counts[1] * windowed for const, counts in lines)


ticks = st.integers(0, 2000).map(float)


@st.composite
def layer_run(draw: st.DrawFn) -> TickRun:
    """A run of equal layers, with or without attention."""
    times = draw(st.lists(ticks, min_size=1, max_size=6))
    attention = draw(st.integers(-1, len(times) - 1))
    if attention >= 0:
        times[attention] = 0.0
    return TickRun(tuple(times), attention, draw(st.integers(0, 1)), draw(st.integers(1, 6)))


runs = st.lists(layer_run(), min_size=1, max_size=4).map(tuple)


@given(runs, ticks, ticks, ticks)
@examples(100)
def test_the_lines_are_the_end_of_the_step(
    runs: tuple[TickRun, ...], issue: float, full: float, windowed: float
) -> None:
    """Only first and last layers are looked at; the answer is that of all kernels, exactly."""
    times = unroll(runs, full, windowed)
    end = brute_force_end([issue] * len(times), times)
    assert value(eager_lines(runs, issue, 2), full, windowed) == end


@given(runs, ticks, ticks, ticks)
@examples(100)
def test_a_captured_step_runs_back_to_back(
    runs: tuple[TickRun, ...], issue: float, full: float, windowed: float
) -> None:
    """The whole issue cost stands before the first kernel."""
    times = unroll(runs, full, windowed)
    issues = [issue] + [0.0] * (len(times) - 1)
    assert value([graph_line(runs, issue, 2)], full, windowed) == brute_force_end(issues, times)


@given(runs, ticks, ticks, ticks, ticks, ticks)
@examples(100)
def test_the_envelope_drops_no_line_that_could_win(
    runs: tuple[TickRun, ...],
    issue: float,
    least: float,
    least_window: float,
    more: float,
    more_window: float,
) -> None:
    """Beyond the corner it was pruned for, the maximum is unchanged."""
    lines = eager_lines(runs, issue, 2)
    kept = envelope(lines, (least, least_window))
    full, windowed = least + more, least_window + more_window
    assert value(kept, full, windowed) == value(lines, full, windowed)
    assert set(kept) <= set(lines)


@given(st.lists(ticks, min_size=1, max_size=8), st.integers(1, 40), ticks, st.integers(0, 30))
@examples(100)
@example(times=[0.0, 10.0], repeat=30, issue=5.0, extra=0)
def test_a_queue_deeper_than_a_layer_never_delays_equal_layers(
    times: list[float], repeat: int, issue: float, extra: int
) -> None:
    """The unbounded queue of the closed form is exact whenever the queue holds one layer.

    If the GPU is the slower of the two over a layer, a wait of the CPU costs nothing; if the CPU
    is, the queue does not fill (proof in docs/step-times.md).
    """
    kernels = times * repeat
    issues = [issue] * len(kernels)
    bounded = brute_force_end(issues, kernels, queue_depth=len(times) + extra)
    assert bounded == brute_force_end(issues, kernels)


def test_a_queue_shorter_than_a_layer_can_delay() -> None:
    """Such a limit is outside the closed form: a long kernel hides fewer issues than it could."""
    kernels = [100.0, 0.0, 0.0, 0.0, 0.0, 0.0] * 4
    issues = [15.0] * len(kernels)
    assert brute_force_end(issues, kernels, queue_depth=2) > brute_force_end(issues, kernels)


@given(st.lists(ticks, min_size=1, max_size=30), ticks, st.integers(1, 5))
@examples(100)
def test_the_recurrence_is_the_simulation_with_processes(
    kernels: list[float], issue: float, queue_depth: int
) -> None:
    """Two writings of dispatcher and queue, one with SimPy, agree: the oracle itself is sound."""
    issues = [issue] * len(kernels)
    assert simpy_end(issues, kernels, queue_depth) == brute_force_end(issues, kernels, queue_depth)


def test_dispatch_bound_steps_take_the_sum_of_the_issue_times() -> None:
    """Kernels shorter than their issue: the end is the last issue plus the last kernel."""
    runs = (TickRun((3.0, 0.0, 2.0), 1, 0, 50),)
    assert value(eager_lines(runs, 20.0, 2), 4.0, 0.0) == 150 * 20.0 + 2.0
