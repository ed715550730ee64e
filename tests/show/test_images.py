"""Pictures look as they did: drawn from made-up frames, compared with the images in `images/`.

``pytest tests/show/test_images.py --mpl-generate-path=tests/show/images`` draws them anew; look at
each before it is committed. Fonts are those that matplotlib brings, and text is not compared.
"""

from __future__ import annotations

import itertools
from collections import Counter
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from click.testing import CliRunner
from matplotlib.figure import Figure

pytest.importorskip("pytest_mpl")

import simcluster
from simcluster.frames.goodput import goodput_table
from simcluster.scenario.rank_table import RankTable
from simcluster.show.plot import (
    figure_of_attainment,
    for_paper,
    legend_beside,
    new_figure,
    plot_attainment,
    plot_goodput_bars,
    plot_ttft_ecdf,
)
from simcluster.show.plot_links import figure_of_links
from simcluster.studies.rank.ranking import Candidate, Ranking

ROOT = Path(__file__).parents[2]
NAMES = ("vLLM", "Sarathi", "DistServe", "MoonCake", "EcoServe")
alike = pytest.mark.mpl_image_compare(
    baseline_dir="images",
    style="default",
    remove_text=True,
    tolerance=4,
    savefig_kwargs={"dpi": 60},
)


def sweep() -> dict[str, Any]:
    """Five strategies whose attainment falls one after the other, two seeds each."""
    rates = np.tile(np.repeat(np.arange(2.0, 14.0, 2.0), 2), len(NAMES))
    names = np.repeat(np.array(NAMES, dtype=object), 12)
    ends = np.repeat([6.0, 7.0, 8.0, 9.0, 11.0], 12)
    seeds = np.tile([0, 1], 30)
    shares = 1.0 / (1.0 + np.exp(1.5 * (rates - ends) + 0.2 * seeds))
    return {
        "strategy": names,
        "rate_rps": rates,
        "seed": seeds,
        "slo_attainment": shares,
        "num_gpus": np.full(60, 4),
        "mean_gpus": np.full(60, 4.0),
    }


@alike
def test_attainment_by_rate() -> Figure:
    """Five strategies in their own colours, dashes and markers."""
    figure = new_figure()
    legend_beside(plot_attainment(sweep(), 0.9, ax=figure.subplots()))
    return figure


@alike
def test_attainment_in_one_column() -> Figure:
    """The legend is below the axes, nothing is cut."""
    figure = new_figure()
    legend_beside(plot_attainment(sweep(), 0.9, ax=figure.subplots()))
    return for_paper(figure, 1)


@alike
def test_bars_of_goodputs() -> Figure:
    """In the colours of the lines."""
    figure = new_figure(height=3.0)
    plot_goodput_bars(goodput_table(sweep(), 0.9), ax=figure.subplots())
    return figure


def candidate(name: str, strategy: str, gpus: int, goodput: float) -> Candidate:
    """A candidate with an interval of a tenth to each side."""
    return Candidate(
        name=name,
        strategy=strategy,
        num_gpus=gpus,
        mean_gpus=float(gpus),
        goodput_rps=goodput,
        low_rps=0.9 * goodput,
        high_rps=1.1 * goodput,
        stage="final",
        price_per_gpu_hour=2.0,
        bottleneck="decode",
        why="",
        ttft_s=0.1 * gpus,
        tpot_s=0.2 / gpus,
        bound_rps=2 * goodput,
    )


def ranking() -> Ranking:
    """Three families on two, four and eight GPUs."""
    rows = [
        candidate(f"{gpus}{letter}", family, gpus, share * gpus)
        for gpus in (8, 4, 2)
        for letter, family, share in (
            ("m", "NoDG", 5.0),
            ("e", "PaDG", 5.0 + 0.2 * (gpus - 4)),
            ("p", "FuDG intra-node", 4.0),
        )
    ]
    return Ranking(
        scenario=simcluster.load(
            ROOT / "scenarios" / "first.toml", {"cluster.price_per_gpu_hour": 2.0}
        ),
        table=RankTable(),
        candidates=tuple(sorted(rows, key=lambda c: -c.goodput_rps)),
        removed=Counter(),
        unsettled={},
        verdicts={},
        notes=(),
        latency_rate_rps=4.0,
        num_requests=0,
    )


@alike
def test_front_of_goodput_and_cost() -> Figure:
    """Candidates of one cost stand in one grey column; the front steps at the costs."""
    figure = new_figure(width=8.0, height=4.4)
    ranking().plot_cost_front(figure.subplots())
    return figure


def test_the_front_steps_at_the_costs_themselves() -> None:
    """8 USD for four GPUs, wherever the points of that column stand; every point is in its own."""
    ax = ranking().plot_cost_front(Figure().subplots())
    (front,) = [line for line in ax.get_lines() if line.get_label() == "Pareto front"]
    assert front.get_xdata()[:3] == pytest.approx([4.0, 8.0, 16.0])
    columns = [p for p in ax.patches if p.get_gid() == "column"]
    boxes = [p.get_path().get_extents(p.get_patch_transform()) for p in columns]
    spans = [(box.x0, box.x1) for box in boxes]
    assert len(spans) == 3
    for container in ax.containers:
        for x in np.asarray(container.lines[0].get_xdata()):
            inside = [k for k, (low, high) in enumerate(spans) if low < x < high]
            assert len(inside) == 1
    assert all(high < low for (_, high), (low, _) in itertools.pairwise(spans))


@alike
def test_links_over_time() -> Figure:
    """The axes end where the last transfer does, and low use is drawn large."""
    edges = np.arange(0.0, 40.0)
    use = np.where(edges < 20, 0.02 + 0.01 * np.sin(edges), 0.0)
    links = {
        "link": np.array(["nic out"] * 40, dtype=object),
        "start_s": edges,
        "end_s": edges + 1,
        "utilisation": use,
    }
    transfers = {
        "path": np.array(["instance-0 nic out > instance-1 nic in"] * 20, dtype=object),
        "duration_s": np.linspace(0.01, 0.1, 20),
        "bytes_per_s": np.linspace(1e9, 5e9, 20),
    }
    figure = figure_of_links({"MoonCake": links}, {"MoonCake": transfers})
    left = figure.axes[0]
    assert left.get_xlim()[1] == pytest.approx(20.4)
    assert left.get_ylim()[1] < 0.05
    return figure


def test_a_paper_has_one_or_two_columns() -> None:
    """Width in inches; three are refused, and nothing is changed."""
    from simcluster.errors import DataError

    slo = simcluster.load(ROOT / "scenarios" / "first.toml").environment.slo
    widths: dict[Literal[1, 2], float] = {1: 3.33, 2: 7.0}
    for columns, width in widths.items():
        figure = figure_of_attainment(sweep(), slo)
        assert for_paper(figure, columns).get_size_inches()[0] == width
    with pytest.raises(DataError, match="1 or 2"):
        for_paper(figure, 3)  # type: ignore[arg-type]


def test_the_strategies_are_drawn_from_a_scenario(script: Any, tmp_path: Path) -> None:
    """A panel for each kind of the file, from runs of its own."""
    main = script("plots/fig_strategies.py").main
    out = tmp_path / "strategies.png"
    words = [str(ROOT / "scenarios" / "first.toml"), "--start", "1", "--end", "2", "-o", str(out)]
    result = CliRunner().invoke(main, words)
    assert result.exception is None, result.output
    assert out.read_bytes().startswith(b"\x89PNG")


def test_a_distribution_keeps_its_target_visible() -> None:
    """Also where every request is far from it."""
    requests = {
        "status": np.array(["finished"] * 3, dtype=object),
        "arrival_s": np.zeros(3),
        "first_output_s": np.array([0.1, 0.2, 0.3]),
        "last_output_s": np.ones(3),
        "output_len": np.full(3, 5),
        "num_output_tokens": np.full(3, 5),
        "first_token_s": np.array([0.1, 0.2, 0.3]),
    }
    ax = plot_ttft_ecdf(requests, target_s=5.0, ax=Figure().subplots())
    assert ax.get_xlim()[0] < 5.0 < ax.get_xlim()[1]
