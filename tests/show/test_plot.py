"""Figures: same axes back, units on the axes, nothing given is changed, numbers as in metrics."""

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
from click.testing import CliRunner
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from simcluster.config import RunConfig, SloConfig
from simcluster.errors import DataError
from simcluster.frames.goodput import goodput_table
from simcluster.frames.metrics import summarise
from simcluster.frames.schema import INSTANCES, REQUESTS, SCHEMAS, SPANS, SWEEP, checked, frame
from simcluster.report.charts import Styles
from simcluster.runs.folder import Cell, writing
from simcluster.runs.result import FRAMES
from simcluster.scenario.file import resolve
from simcluster.show.colours import COLOURS
from simcluster.show.plot import (
    legend_beside,
    overlay,
    palette,
    plot_attainment,
    plot_goodput_bars,
    plot_kv_usage_by_role,
    plot_kv_usage_over_time,
    plot_queue_over_time,
    plot_tpot_ecdf,
    plot_ttft_ecdf,
    plot_ttft_over_time,
    plot_waiting_over_time,
    render_comparison,
)
from simcluster.units import FloatArray

Columns = dict[str, npt.NDArray[Any]]
Script = Callable[[str], SimpleNamespace]

SLO = SloConfig(ttft_s=2.0, tpot_s=0.1, attainment=0.9)
RUN = RunConfig(warmup_s=1.0)
NAMES = ("vllm", "ecoserve")
RATES = (2.0, 4.0)
PLOTS = Path(__file__).parents[2] / "plots"


def make_requests(rate_rps: float, seed: int = 0, num: int = 80) -> Columns:
    """Requests of a made-up run, the slower the higher its rate; a few rejected or unfinished."""
    rng = np.random.default_rng(seed)
    arrival = np.cumsum(rng.exponential(1 / rate_rps, num))
    first = arrival + rng.exponential(0.2 * rate_rps, num)
    output_len = rng.integers(1, 200, num)
    last = first + 0.02 * rate_rps * (output_len - 1)
    status = np.array(["finished"] * num, dtype=object)
    status[5], status[6] = "rejected", "unfinished"
    data: dict[str, Any] = {name: np.zeros(num) for name in REQUESTS} | {
        "arrival_s": arrival,
        "scheduled_s": (arrival + first) / 2,
        "first_token_s": first,
        "decode_start_s": first,
        "first_output_s": first,
        "last_token_s": last,
        "last_output_s": last,
        "output_len": output_len,
        "num_output_tokens": output_len,
        "status": status,
        "model": np.array(["m"] * num, dtype=object),
    }
    for name in ("scheduled_s", "first_output_s", "last_output_s"):
        data[name][5] = np.nan
    data["last_output_s"][6] = np.nan
    return checked(data, REQUESTS)


def make_spans(num: int = 60, seed: int = 0) -> Columns:
    """Spans of two instances, in the order in which a recorder would not have written them."""
    rng = np.random.default_rng(seed)
    end = np.cumsum(rng.uniform(0.1, 1.0, num))
    order = rng.permutation(num)
    data: dict[str, Any] = {name: np.zeros(num) for name in SPANS} | {
        "instance": np.arange(num) % 2,
        "start_s": end - 0.1,
        "end_s": end,
        "kind": np.array(["decode"] * num, dtype=object),
        "kv_usage": rng.uniform(0, 1, num),
        "num_waiting": rng.integers(0, 9, num),
    }
    return checked({name: column[order] for name, column in data.items()}, SPANS)


def make_instances(pools: tuple[str, str]) -> Columns:
    """Two instances of the given pools."""
    data: dict[str, Any] = {name: np.zeros(2) for name in INSTANCES} | {
        "instance": np.arange(2),
        "pool": np.array(pools, dtype=object),
        "model": np.array(["m", "m"], dtype=object),
        "gpu": np.array(["g", "g"], dtype=object),
        "all_to_all": np.array(["gather", "gather"], dtype=object),
    }
    return checked(data, INSTANCES)


def make_row(name: str, rate_rps: float, seed: int = 0) -> dict[str, Any]:
    """One row of the sweep."""
    return summarise(
        make_requests(rate_rps, seed),
        slo=SLO,
        run=RUN,
        strategy=name,
        rate_rps=rate_rps,
        seed=seed,
        num_gpus=8,
    )


def make_sweep() -> Columns:
    """Two strategies, two rates, two seeds."""
    rows = [make_row(n, r, s) for n in NAMES for r in RATES for s in (0, 1)]
    return checked({name: np.array([row[name] for row in rows]) for name in SWEEP}, SWEEP)


def points(ax: Axes, line: int = 0) -> tuple[FloatArray, FloatArray]:
    """Return the points of a line."""
    drawn = ax.get_lines()[line]
    return np.asarray(drawn.get_xdata(), np.float64), np.asarray(drawn.get_ydata(), np.float64)


@pytest.fixture
def ax() -> Axes:
    """Axes of a figure that pyplot does not know, drawn by Agg."""
    return Figure().subplots()


CASES: dict[str, tuple[Callable[..., Axes], dict[str, Columns], str, str]] = {
    "ttft": (
        lambda requests, **k: plot_ttft_ecdf(requests, target_s=2.0, **k),
        {"requests": make_requests(3.0)},
        "Time to first token (s)",
        "Share of arrived requests",
    ),
    "tpot": (
        lambda requests, **k: plot_tpot_ecdf(requests, target_s=0.1, **k),
        {"requests": make_requests(3.0)},
        "Time per output token (ms)",
        "Share of arrived requests (≥ 2 tokens)",
    ),
    "attainment": (
        lambda sweep, **k: plot_attainment(sweep, 0.9, **k),
        {"sweep": make_sweep()},
        "Offered rate (requests/s)",
        "SLO attainment (share of arrived requests)",
    ),
    "goodput": (
        plot_goodput_bars,
        {"rows": goodput_table(make_sweep(), 0.5)},
        "Goodput (requests/s)",
        "",
    ),
    "waiting": (
        plot_waiting_over_time,
        {"requests": make_requests(3.0)},
        "Time (s)",
        "Requests with no step yet",
    ),
    "queue": (
        plot_queue_over_time,
        {"requests": make_requests(3.0)},
        "Time (s)",
        "of them in instance queues",
    ),
    "kv_usage": (plot_kv_usage_over_time, {"spans": make_spans()}, "Time (s)", "KV blocks in use"),
    "kv_usage_by_pool": (
        plot_kv_usage_by_role,
        {"spans": make_spans(), "instances": make_instances(("prefill", "decode"))},
        "Time (s)",
        "KV blocks in use",
    ),
}


@pytest.fixture(params=CASES)
def case(
    request: pytest.FixtureRequest,
) -> tuple[Callable[..., Axes], dict[str, Columns], str, str]:
    """A plot function, what it is given, and its axis labels."""
    return CASES[request.param]


def test_a_plot_returns_the_axes_it_was_given_with_units_on_them(
    case: tuple[Callable[..., Axes], dict[str, Columns], str, str], ax: Axes
) -> None:
    """So that people can go on drawing, and read what is drawn."""
    plot, given, x_label, y_label = case
    assert plot(**given, ax=ax) is ax
    assert (ax.get_xlabel(), ax.get_ylabel()) == (x_label, y_label)


def test_a_plot_changes_neither_what_it_is_given_nor_settings(
    case: tuple[Callable[..., Axes], dict[str, Columns], str, str], ax: Axes
) -> None:
    """The caller's arrays stay in their order; matplotlib's defaults stay the caller's."""
    plot, given, _, _ = case
    before = {key: {n: c.copy() for n, c in columns.items()} for key, columns in given.items()}
    settings = dict(mpl.rcParams)
    plot(**given, ax=ax)
    assert dict(mpl.rcParams) == settings
    for key, columns in given.items():
        for name, column in columns.items():
            assert pd.Series(column).equals(pd.Series(before[key][name])), (key, name)


def test_a_plot_takes_pandas_frames_alike(
    case: tuple[Callable[..., Axes], dict[str, Columns], str, str], ax: Axes
) -> None:
    """The same lines and bars from columns and from frames."""
    plot, given, _, _ = case
    plot(**given, ax=ax)
    other: Axes = Figure().subplots()
    frames = {
        key: pd.DataFrame(columns) if key == "rows" else frame(columns, SCHEMAS[key])
        for key, columns in given.items()
    }
    plot(**frames, ax=other)
    for one, two in zip(ax.get_lines(), other.get_lines(), strict=True):
        assert np.array_equal(one.get_xydata(), two.get_xydata())
    assert len(ax.patches) == len(other.patches)


def test_keywords_go_to_the_line(ax: Axes) -> None:
    """Colour, label and the rest are the caller's."""
    plot_ttft_ecdf(make_requests(3.0), ax=ax, color="#123456", label="mine", linewidth=3.0)
    line = ax.get_lines()[0]
    assert (line.get_color(), line.get_label(), line.get_linewidth()) == ("#123456", "mine", 3.0)


@pytest.fixture
def _no_open_figures() -> Iterator[None]:
    from matplotlib import pyplot as plt

    backend = mpl.get_backend()
    plt.switch_backend("Agg")
    yield
    plt.close("all")
    plt.switch_backend(backend)


@pytest.mark.usefixtures("_no_open_figures")
def test_without_axes_a_plot_draws_into_the_current_ones() -> None:
    """As every plotting library does."""
    from matplotlib import pyplot as plt

    current = plt.gca()
    assert plot_ttft_ecdf(make_requests(3.0)) is current


@pytest.mark.parametrize(
    ("plot", "target_s", "scale", "share"),
    [(plot_ttft_ecdf, 0.4, 1.0, "ttft_attainment"), (plot_tpot_ecdf, 0.061, 1e3, None)],
)
def test_a_distribution_reads_the_attainment_at_the_target(
    ax: Axes, plot: Callable[..., Axes], target_s: float, scale: float, share: str | None
) -> None:
    """Rejected and unfinished requests count as never: the two figures cannot disagree."""
    columns = make_requests(3.0)
    plot(columns, ax=ax)
    x, y = points(ax)
    drawn = y[np.searchsorted(x, target_s * scale, side="right") - 1]
    if share is None:  # every finished request has 60 ms; one-token answers are left out
        long = columns["output_len"] > 1
        expected = np.mean((columns["status"] == "finished")[long])
    else:
        row = summarise(
            columns,
            slo=SloConfig(ttft_s=target_s),
            run=RunConfig(),
            strategy="",
            rate_rps=3.0,
            seed=0,
            num_gpus=1,
        )
        expected = np.float64(row[share])
    assert drawn == pytest.approx(expected)
    assert y[-1] < 1.0


def test_a_long_distribution_is_thinned_to_exact_points(ax: Axes) -> None:
    """A million points cannot be seen; those drawn lie on the distribution."""
    num = 50_000
    columns = make_requests(3.0, num=num)
    plot_ttft_ecdf(columns, ax=ax)
    x, y = points(ax)
    assert x.size < 2_100
    ttft = columns["first_output_s"] - columns["arrival_s"]
    ttft[columns["status"] != "finished"] = np.inf
    for i in (1, 700, -1):
        assert y[i] == pytest.approx(np.mean(ttft <= x[i]))


def test_a_target_is_drawn_once_and_stands_last_in_the_legend(ax: Axes) -> None:
    """However many strategies are compared with it."""
    frames = {name: make_requests(3.0, seed) for seed, name in enumerate(NAMES)}
    overlay(plot_ttft_ecdf, frames, styles=palette(NAMES), ax=ax, target_s=2.0)
    legend_beside(ax)
    legend = ax.get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == [*NAMES, "target 2 s"]
    assert not legend.get_frame_on()


def test_a_latency_axis_is_logarithmic_only_where_the_range_is_large(ax: Axes) -> None:
    """An overloaded strategy among others would squeeze them onto the axis."""
    fast, slow = make_requests(3.0), make_requests(3.0)
    plot_tpot_ecdf(fast, ax=ax)
    assert ax.get_xscale() == "linear"
    assert ax.get_xlim()[0] == 0.0
    for name in ("first_output_s", "last_output_s"):
        slow[name] = slow[name] + 500.0
    other: Axes = Figure().subplots()
    plot_ttft_ecdf(fast, ax=other)
    plot_ttft_ecdf(slow, ax=other)
    assert other.get_xscale() == "log"
    low, high = other.get_xlim()
    assert 0 < low < high
    assert high > 500.0


def test_nothing_finished_gives_an_empty_figure_without_warnings(ax: Axes) -> None:
    """An overload so deep that there is nothing to draw."""
    columns = make_requests(3.0)
    columns["status"][:] = "unfinished"
    plot_ttft_ecdf(columns, target_s=1.0, ax=ax)
    plot_tpot_ecdf(columns, ax=ax)
    empty = {name: column[:0] for name, column in columns.items()}
    plot_queue_over_time(empty, ax=ax)
    assert points(ax)[0].size == 0


def test_a_strategy_keeps_its_look_in_every_figure() -> None:
    """One palette for all; the first styles differ in colour and, without colour, in dashes."""
    styles = palette(["a", "b", "a", "c", "d"])
    assert list(styles) == ["a", "b", "c", "d"]
    assert len({style["color"] for style in styles.values()}) == 4
    assert len({style["linestyle"] for style in styles.values()}) == 4
    many = palette(map(str, range(49)))
    assert len({(style["color"], style["linestyle"]) for style in many.values()}) == 49
    lines: Axes = Figure().subplots()
    bars: Axes = Figure().subplots()
    plot_attainment(make_sweep(), 0.9, ax=lines)
    plot_goodput_bars(goodput_table(make_sweep(), 0.1), ax=bars)
    by_name = {line.get_label(): line.get_color() for line in lines.get_lines()}
    expected = palette(NAMES)
    assert {name: by_name[name] for name in NAMES} == {n: expected[n]["color"] for n in NAMES}
    assert [mpl.colors.to_hex(bar.get_facecolor()).upper() for bar in bars.patches] == [
        expected[name]["color"] for name in NAMES
    ]


def test_a_known_strategy_looks_the_same_in_every_comparison() -> None:
    """Whatever stands beside it and in whatever order; also in a ranking and in reports."""
    alone = palette(["EcoServe"])["EcoServe"]
    assert palette(["mine", "vLLM", "EcoServe"])["EcoServe"] == alone
    assert palette(["NoDG", "PaDG"])["PaDG"] == alone
    assert Styles(["vLLM", "yours", "EcoServe"]).colour("EcoServe") == alone["color"]
    five = palette(["vLLM", "Sarathi", "DistServe", "MoonCake", "EcoServe"])
    assert [one["color"] for one in five.values()] == [COLOURS[k] for k in (1, 2, 3, 4, 0)]
    assert len({one["linestyle"] for one in five.values()}) == 5
    both = palette(["vLLM", "NoDG"])
    assert both["vLLM"]["color"] != both["NoDG"]["color"]


def test_names_are_drawn_as_they_are_written(ax: Axes) -> None:
    """Dollar signs are no formula, and a leading underscore is in the legend like any other."""
    names = ["$x_1$ cost", "_mine", "a_b"]
    shown = [r"\$x_1\$ cost", " _mine", "a_b"]
    row = {name: values[:1] for name, values in make_sweep().items()}
    rows = {name: np.repeat(values, 3) for name, values in row.items()}
    rows["strategy"] = np.array(names, dtype=object)
    plot_attainment(rows, 0.9, ax=ax)
    overlaid, bars = Figure().subplots(2)
    runs = dict.fromkeys(names, make_requests(2.0))
    overlay(plot_ttft_ecdf, runs, styles=palette(names), ax=overlaid)
    plot_goodput_bars(goodput_table(rows, 0.1), ax=bars)
    for axes in (ax, overlaid):
        legend_beside(axes)
        legend = axes.get_legend()
        assert legend is not None
        assert [text.get_text() for text in legend.get_texts()][:3] == shown
    assert [text.get_text() for text in bars.get_yticklabels()] == shown
    drawn = Figure()
    drawn.text(0, 0, shown[0])
    canvas = FigureCanvasAgg(drawn)
    _, is_formula = drawn.texts[0]._preprocess_math(shown[0])  # type: ignore[attr-defined]  # Text has it, its stub has not
    assert is_formula is False
    canvas.draw()


def test_attainment_lines_are_means_over_seeds(ax: Axes) -> None:
    """With whiskers to the lowest and highest seed."""
    sweep = make_sweep()
    plot_attainment(sweep, 0.9, ax=ax)
    rates, means = points(ax)
    assert rates.tolist() == list(RATES)
    own = sweep["slo_attainment"][sweep["strategy"] == "vllm"]
    assert means == pytest.approx([own[:2].mean(), own[2:].mean()])


def test_a_bound_on_goodput_is_marked_as_one(ax: Axes) -> None:
    """A grid of rates that ends too early must not look like a result."""
    rows = {
        "strategy": np.array(["in", "above", "below"], dtype=object),
        "goodput_rps": np.array([3.0, 8.0, 2.0]),
        "goodput_rps_min": np.array([2.5, 8.0, 2.0]),
        "goodput_rps_max": np.array([3.5, 8.0, 2.0]),
        "goodput_rps_per_gpu": np.array([0.75, 2.0, 0.5]),
        "censored": np.array(["", "above", "below"], dtype=object),
    }
    plot_goodput_bars(rows, column="goodput_rps_per_gpu", ax=ax)
    assert [text.get_text() for text in ax.texts] == ["0.750", "≥ 2.00", "< 0.500"]
    assert [bar.get_width() for bar in ax.patches] == [0.75, 2.0, 0.0]  # type: ignore[attr-defined]
    assert [bool(bar.get_hatch()) for bar in ax.patches] == [False, True, False]
    assert points(ax)[0] == pytest.approx([2.5 / 4, 3.5 / 4])
    assert ax.get_xlabel() == "Goodput per GPU (requests/s)"


def test_a_level_drawn_in_bins_keeps_its_area(ax: Axes) -> None:
    """Averages over bins, not samples: a spike between two samples would vanish."""
    num = 3000
    spans = make_spans(num)
    spans["instance"][:] = 0
    plot_kv_usage_over_time(spans, ax=ax)
    x, y = points(ax)
    assert x.size < 200
    order = np.argsort(spans["end_s"])
    end, level = spans["end_s"][order], spans["kv_usage"][order]
    assert np.sum(y[:-1] * np.diff(x)) == pytest.approx(np.sum(level[:-1] * np.diff(end)), rel=1e-2)


def test_runs_without_an_offered_rate_have_no_attainment_by_rate(ax: Axes) -> None:
    """A closed loop offers whatever the cluster takes."""
    sweep = make_sweep() | {"rate_rps": np.full(8, np.nan)}
    with pytest.raises(DataError, match="closed loop"):
        plot_attainment(sweep, 0.9, ax=ax)


def test_ttft_over_time_is_the_mean_of_those_who_arrive(ax: Axes) -> None:
    """Sixty stretches; the mean of all, weighted by who arrives, is that of the requests."""
    requests = make_requests(3.0)
    assert plot_ttft_over_time(requests, target_s=2.0, ax=ax) is ax
    (stairs,) = ax.patches
    means, edges, _ = stairs.get_data()  # type: ignore[attr-defined]
    ttft = requests["first_output_s"] - requests["arrival_s"]
    counts, _ = np.histogram(requests["arrival_s"][~np.isnan(ttft)], edges)
    assert len(means) == 60
    assert np.nansum(means * counts) / counts.sum() == pytest.approx(np.nanmean(ttft))
    assert ax.get_xlabel() == "Arrival (s)"
    plot_ttft_over_time(make_requests(30.0), ax=ax)  # ten times slower: the axis makes room
    assert ax.get_ylim()[1] > np.nanmax(ax.patches[1].get_data().values)  # type: ignore[attr-defined]


def test_model_machines_and_targets_stand_over_every_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who sees a picture alone knows of what it is."""
    titles = []

    def savefig(figure: Figure, path: Path) -> None:
        titles.append(figure.get_suptitle())

    monkeypatch.setattr(Figure, "savefig", savefig)
    requests, spans = {"vllm": make_requests(3.0)}, {"vllm": make_spans()}
    render_comparison(make_sweep(), requests, spans, SLO, tmp_path, about="llama on 8 x H100")
    assert titles == ["llama on 8 x H100"] * 7


@pytest.mark.parametrize("with_rates", [True, False, "one"])
def test_a_comparison_is_drawn_into_its_files(tmp_path: Path, with_rates: bool | str) -> None:
    """All files, each a picture; without rates, or with one, those that need no several."""
    sweep = make_sweep()
    if not with_rates:
        sweep["rate_rps"] = np.full(8, np.nan)
    if with_rates == "one":
        sweep["rate_rps"] = np.full(8, 3.0)
    written = render_comparison(
        sweep,
        {name: make_requests(3.0) for name in NAMES},
        {name: make_spans() for name in NAMES},
        SLO,
        tmp_path / "figures",
        instances_by_strategy={"vllm": make_instances(("prefill", "decode"))},
        run=RUN,
        title="3 requests/s",
    )
    expected = {"ttft_cdf", "tpot_cdf", "ttft_over_time", "queue", "kv_usage"}
    if with_rates is True:
        expected |= {"attainment", "goodput"}
    assert {path.stem for path in written} == expected
    for path in written:
        assert path.parent == tmp_path / "figures"
        assert path.read_bytes().startswith(b"\x89PNG")


@pytest.fixture(scope="module")
def result_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A result folder of made-up runs."""
    document = {
        "model": {"name": "llama-2-7b"},
        "workload": {"lengths": {"kind": "fixed", "prompt_len": 100, "output_len": 20}},
        "strategy": [{"name": name, "kind": "nodg"} for name in NAMES],
        "slo": {"ttft_s": 2.0, "tpot_s": 0.1, "attainment": 0.9},
        "run": {"seeds": [0], "warmup_s": 1.0, "cooldown_s": 0.0},
        "cluster": {"gpu": "A100", "price_per_gpu_hour": 1.5, "currency": "EUR"},
    }
    cells = [Cell(name, rate, 0) for name in NAMES for rate in RATES]
    empty = {n: checked({c: np.array([]) for c in SCHEMAS[n]}, SCHEMAS[n]) for n in FRAMES}
    out = tmp_path_factory.mktemp("results") / "comparison"
    with writing(out, resolve(document), cells) as folder:
        rows = []
        for name, rate, *_ in cells:
            assert rate is not None
            frames = empty | {
                "requests": make_requests(rate),
                "spans": make_spans(),
                "instances": make_instances(("mixed", "mixed")),
            }
            rows.append(make_row(name, rate))
            folder.write(Cell(name, rate, 0), frames, rows[-1])
        folder.write_sweep(rows)
    return out


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("fig_latency_cdf", []),
        ("fig_latency_cdf", ["--rate", "4", "--seed", "0"]),
        ("fig_attainment", ["--target", "0.5"]),
        ("fig_goodput", []),
        ("fig_goodput", ["--per", "gpu"]),
        ("fig_goodput", ["--per", "cost"]),
        ("fig_queue_kv", []),
    ],
)
def test_every_figure_script_draws_a_recorded_comparison(
    script: Script, name: str, options: list[str], result_dir: Path, tmp_path: Path
) -> None:
    """Each reads a result folder and writes one picture."""
    main = script(f"plots/{name}.py").main
    out = tmp_path / "figure.png"
    result = CliRunner().invoke(main, [str(result_dir), "-o", str(out), *options])
    assert result.exception is None, result.output
    assert out.read_bytes().startswith(b"\x89PNG")


def test_every_figure_script_has_a_test() -> None:
    """A script that nobody runs rots."""
    tested = {"fig_latency_cdf", "fig_attainment", "fig_goodput", "fig_queue_kv"}
    tested.add("fig_rolling_activation")  # in test_plot_timeline
    tested.add("fig_interconnect")  # below, from a frame of its own
    tested |= {"fig_ecoserve_elastic", "fig_ecoserve_goodput"}  # in test_ecoserve_studies
    tested.add("fig_boute")  # below
    tested.add("fig_strategies")  # in test_images
    assert {path.stem for path in PLOTS.glob("fig_*.py")} == tested


def test_the_figure_of_boute_marks_where_the_published_order_holds(
    script: Script, tmp_path: Path
) -> None:
    """By a table of which the order holds at two of four rates, apart from each other."""
    figure = script("plots/fig_boute.py")
    assert figure.spans([1.0, 2.0, 3.0, 4.0], [True, False, True, True]) == [(1, 1), (3, 4)]
    plans = ("even", "alone", figure.BY_FOURS, figure.BEST, "mixed")
    lines = ["rate_rps,plan,p95_s,half_width_s"]
    for rate, values in ((6, (5, 4, 3, 2, 2)), (9, (5, 6, 3, 2, 2)), (12, (9, 8, 7, 5, 6))):
        lines += [f'{rate},"{n}",{v},0.1' for n, v in zip(plans, values, strict=True)]
    table, out = tmp_path / "example.csv", tmp_path / "figure.png"
    table.write_text("\n".join(lines))
    result = CliRunner().invoke(figure.main, [str(table), "-o", str(out)])
    assert result.exception is None, result.output
    assert out.read_bytes().startswith(b"\x89PNG")


def test_the_figure_of_the_interconnect_is_drawn_from_its_frame(
    script: Script, tmp_path: Path
) -> None:
    """Two machines, each with two levels and a curve."""
    rows = []
    for machine in ("slow", "fast"):
        rows += [{"machine": machine, "strategy": s, "goodput_rps": 5.0} for s in ("NoDG", "PaDG")]
        rows += [
            {"machine": machine, "strategy": "FuDG", "node_gbit": gbit, "goodput_rps": gbit / 10}
            for gbit in (10.0, 100.0)
        ]
    pd.DataFrame(rows).to_parquet(tmp_path / "interconnect.parquet")
    main = script("plots/fig_interconnect.py").main
    out = tmp_path / "figure.png"
    result = CliRunner().invoke(main, [str(tmp_path), "-o", str(out)])
    assert result.exception is None, result.output
    assert out.read_bytes().startswith(b"\x89PNG")
