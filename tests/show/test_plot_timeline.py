"""The picture of rolling activation: bars, frames and marks where the frames say."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from simcluster import load, simulate
from simcluster.errors import DataError
from simcluster.runs import compare as sweep
from simcluster.runs.result import Result
from simcluster.show.plot_timeline import KIND_COLOURS, legend_of_turns, plot_rolling_activation

ROOT = Path(__file__).parents[2]
SCENARIO = ROOT / "scenarios" / "nodg_vs_padg.toml"
SMALL = {"cluster.nodes": 1, "workload.num_requests": 300, "sweep.rates_rps": [14]}


@pytest.fixture(scope="module")
def result() -> Result:
    """Four instances that take turns."""
    return simulate(load(SCENARIO, SMALL), strategy="EcoServe")


@pytest.fixture
def ax() -> Iterator[Axes]:
    """Axes of a figure of their own."""
    figure = Figure()
    yield figure.subplots()
    figure.clear()


def extents(ax: Axes, kind: str) -> list[tuple[float, float, int]]:
    """Left and right end and row of every bar of a kind."""
    bars = []
    for collection in ax.collections:
        if collection.get_gid() == KIND_COLOURS[kind]:
            for path in collection.get_paths():
                x, y = path.vertices[:, 0], path.vertices[:, 1]
                bars.append((float(x.min()), float(x.max()), round(float(y.mean() - 0.1))))
    return bars


SPANS: dict[str, Any] = {
    "instance": np.array([1, 0, 0, 0, 0]),
    "start_s": np.array([0.0, 1.0, 2.0, 4.0, 3.0]),
    "end_s": np.array([2.5, 2.0, 3.0, 5.0, 3.5]),
    "kind": np.array(["decode", "prefill", "prefill", "prefill", "decode"], dtype=object),
}
WINDOWS: dict[str, Any] = {
    "instance": np.array([0, 1]),
    "opened_s": np.array([1.0, 3.0]),
    "closed_s": np.array([3.0, 9.0]),
    "released_s": np.array([2.0, np.inf]),
}
REQUESTS: dict[str, Any] = {
    "prefill_instance": np.array([0, 0, 1, -1]),
    "routed_s": np.array([1.0, 1.5, 3.0, np.nan]),
}


def test_bars_that_touch_are_one(ax: Axes) -> None:
    """Written-out spans: rows from the top, gaps stay, nothing given is changed."""
    before = {name: column.copy() for name, column in SPANS.items()}
    assert plot_rolling_activation(SPANS, WINDOWS, requests=REQUESTS, ax=ax) is ax
    assert extents(ax, "prefill") == [(1.0, 3.0, 0), (4.0, 5.0, 0)]
    assert sorted(extents(ax, "decode")) == [(0.0, 2.5, 1), (3.0, 3.5, 0)]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["instance 0", "instance 1"]
    assert all(np.array_equal(before[name], SPANS[name]) for name in SPANS)


def test_windows_frame_their_row_and_say_how_long_output_is_held(ax: Axes) -> None:
    """A hold that the end of the run cut off reaches to the end of its window."""
    plot_rolling_activation(SPANS, WINDOWS, requests=REQUESTS, ax=ax)
    frames = {(p.get_x(), p.get_x() + p.get_width()) for p in ax.patches}
    assert frames == {(1.0, 3.0), (3.0, 9.0)}
    held = [tuple(line.get_xdata()) for line in ax.lines if line.get_gid() == "held"]
    assert held == [(1.0, 2.0), (3.0, 9.0)]
    routed = [list(line.get_xdata()) for line in ax.lines if line.get_gid() == "routed"]
    assert routed == [[1.0, 1.5], [3.0]]


def test_the_legend_names_what_is_drawn(ax: Axes) -> None:
    """And nothing else: no windows, no frames in the legend."""
    plot_rolling_activation(SPANS, {name: c[:0] for name, c in WINDOWS.items()}, ax=ax)
    legend_of_turns(ax)
    legend = ax.get_legend()
    assert legend is not None
    assert [t.get_text() for t in legend.get_texts()] == ["prefill steps", "decode steps"]


def test_instances_can_be_chosen(ax: Axes) -> None:
    """In the order given."""
    plot_rolling_activation(SPANS, WINDOWS, [1, 0], ax=ax)
    assert [label.get_text() for label in ax.get_yticklabels()] == ["instance 1", "instance 0"]
    assert extents(ax, "prefill")[0][2] == 1


def test_nothing_to_draw_is_an_error(ax: Axes) -> None:
    """Of a stretch without steps, and of instances that have none."""
    with pytest.raises(DataError, match="no steps between 7 s and 8 s"):
        plot_rolling_activation(SPANS, WINDOWS, start_s=7.0, end_s=8.0, ax=ax)
    with pytest.raises(DataError, match="no steps"):
        plot_rolling_activation(SPANS, WINDOWS, [5], ax=ax)


def test_a_run_is_drawn_as_it_was(result: Result, ax: Axes) -> None:
    """The time of the bars is that of the spans, of a frame as well as of columns."""
    plot_rolling_activation(result.spans, result.windows, requests=result.requests, ax=ax)
    spans = result.columns["spans"]
    for kind in ("prefill", "decode"):
        own = spans["kind"] == kind
        expected = (spans["end_s"] - spans["start_s"])[own].sum()
        assert sum(b - a for a, b, _ in extents(ax, kind)) == pytest.approx(expected)
    windows = result.columns["windows"]
    assert len(ax.patches) == 2 * len(windows["opened_s"])
    start, end = ax.get_xlim()
    assert (start, end) == (spans["start_s"].min(), spans["end_s"].max())


def test_requests_go_to_the_open_window(result: Result) -> None:
    """What the picture is about: marks lie inside frames of their row."""
    requests, windows = result.columns["requests"], result.columns["windows"]
    for instance, routed_s in zip(requests["prefill_instance"], requests["routed_s"], strict=True):
        own = windows["instance"] == instance
        inside = (windows["opened_s"] <= routed_s) & (routed_s <= windows["closed_s"])
        assert (own & inside).any()


def test_the_script_draws_a_recorded_run(
    script: Callable[[str], SimpleNamespace], tmp_path: Path
) -> None:
    """It finds the strategy with windows; without one it says so."""
    scenario = load(SCENARIO, SMALL)
    sweep.compare(scenario, jobs=1, out=tmp_path / "both")
    main = script("plots/fig_rolling_activation.py").main
    out = tmp_path / "figure.png"
    done = CliRunner().invoke(main, [str(tmp_path / "both"), "-o", str(out), "--start", "2"])
    assert done.exception is None, done.output
    assert out.read_bytes().startswith(b"\x89PNG")
    only = ["--strategy", "vLLM", "--end", "20"]
    done = CliRunner().invoke(main, [str(tmp_path / "both"), "-o", str(out), *only])
    assert isinstance(done.exception, DataError)
    assert "prefill windows" in str(done.exception)
