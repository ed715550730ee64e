"""Lengths follow the distribution they are named after, and fit the model."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from helpers.refusals import refused
from simcluster import catalog
from simcluster.catalog import Catalog
from simcluster.errors import ConfigError
from simcluster.rng import stream
from simcluster.testing.examples import examples
from simcluster.units import IntArray
from simcluster.workload import LENGTHS, LengthDistribution, WorkloadSettings, build
from simcluster.workload import lengths as lengths_module
from simcluster.workload.base import MAX_TOKENS
from simcluster.workload.build import fit
from simcluster.workload.lengths import (
    FixedLengths,
    LognormalLengths,
    QuantileLengths,
    Quantiles,
    TableLengths,
    TabulatedLengths,
)
from simcluster.workload.settings import RequestClass
from simcluster.workload.traces import read_trace

DATA = Path(
    os.environ.get("SIMCLUSTER_DATA", Path(__file__).resolve().parents[2] / "../shared/data")
)


MINE = Catalog(
    (
        (
            "lengths",
            {
                "name": "made",
                "levels": np.linspace(0, 1, 21).tolist(),
                "prompt": np.linspace(1, 1001, 21).tolist(),
                "output_by_prompt": [
                    np.linspace(1, 101, 21).tolist(),
                    np.linspace(201, 401, 21).tolist(),
                ],
                "num_measured": 1000,
                "prompt_mean": 501.0,
                "output_mean": (51 + 301) / 2,
                "source": "made for the test",
                "licence": "none",
            },
        ),
    )
)
"""Prompts uniform on 1..1001; outputs uniform on 1..101 after short ones, 201..401 else."""
MADE = MINE.lengths("made")


def draw(
    lengths: LengthDistribution, num_requests: int = 100_000, seed: int = 0
) -> tuple[IntArray, IntArray]:
    """A draw from the stream of a run."""
    return lengths.draw(num_requests, stream(seed, "lengths"))


def test_fixed_lengths_are_what_they_say() -> None:
    """All requests are alike."""
    prompt, output = draw(FixedLengths(prompt_len=2048, output_len=64), 10)
    assert prompt.tolist() == [2048] * 10
    assert output.tolist() == [64] * 10
    assert prompt.dtype == output.dtype == np.int64


def test_lognormal_lengths_have_their_median_and_spread() -> None:
    """Median, standard deviation of the logarithm and mean = median exp(sigma^2 / 2)."""
    lengths = LognormalLengths(
        prompt_median=800, prompt_sigma=0.9, output_median=150, output_sigma=0.4
    )
    for drawn, median, sigma in zip(draw(lengths), (800, 150), (0.9, 0.4), strict=True):
        num = len(drawn)
        # standard error of a sample median of the logarithm: sigma sqrt(pi / 2n)
        assert abs(np.log(np.median(drawn) / median)) < 4 * sigma * np.sqrt(np.pi / 2 / num) + (
            0.5 / median  # rounding to whole tokens
        )
        assert abs(np.log(drawn).std() / sigma - 1) < 4 / np.sqrt(2 * num) + 0.005
        assert drawn.mean() == pytest.approx(median * np.exp(sigma**2 / 2), rel=0.02)
    prompt, output = draw(lengths)
    assert abs(np.corrcoef(np.log(prompt), np.log(output))[0, 1]) < 4 / np.sqrt(len(prompt))


def test_lognormal_limits_hold() -> None:
    """Lengths outside the limits get the limit; the rest stays as it was."""
    free = LognormalLengths(prompt_median=500, prompt_sigma=1, output_median=100, output_sigma=1)
    bound = LognormalLengths(
        prompt_median=500,
        prompt_sigma=1,
        output_median=100,
        output_sigma=1,
        prompt_min=100,
        prompt_max=2000,
        output_min=20,
        output_max=300,
    )
    for without, within, low, high in zip(
        draw(free), draw(bound), (100, 20), (2000, 300), strict=True
    ):
        assert within.min() == low
        assert within.max() == high
        assert (within == without.clip(low, high)).all()


def test_lognormal_with_sigma_zero_is_fixed() -> None:
    """A feature at its zero setting equals the feature off."""
    lengths = LognormalLengths(prompt_median=77, prompt_sigma=0, output_median=5, output_sigma=0)
    prompt, output = draw(lengths, 100)
    assert set(prompt.tolist()) == {77}
    assert set(output.tolist()) == {5}


def test_absurd_spread_stays_within_what_frames_hold() -> None:
    """No overflow: the longest length is that of a 32-bit column."""
    lengths = LognormalLengths(
        prompt_median=1e3, prompt_sigma=500, output_median=1e3, output_sigma=500
    )
    prompt, output = draw(lengths, 1000)
    assert prompt.max() == output.max() == MAX_TOKENS
    assert prompt.min() == output.min() == 1


def test_quantile_lengths_have_their_quantiles() -> None:
    """Order statistics of a long draw against the quantiles given, at four standard errors."""
    levels = (0.0, 0.25, 0.5, 0.9, 1.0)
    lengths = QuantileLengths(
        levels=levels, prompt=(10, 200, 500, 3000, 8000), output=(1, 20, 60, 400, 900)
    )
    prompt, output = draw(lengths)
    for drawn, values in ((prompt, lengths.prompt), (output, lengths.output)):
        for level, value in zip(levels[1:-1], values[1:-1], strict=True):
            share = np.mean(drawn <= value)
            assert abs(share - level) < 4 * np.sqrt(level * (1 - level) / len(drawn)) + 0.02 * level
        assert drawn.min() >= values[0]
        assert drawn.max() <= values[-1]
    assert abs(np.corrcoef(prompt, output)[0, 1]) < 4 / np.sqrt(len(prompt))


def test_a_table_of_the_catalogue_gives_its_means() -> None:
    """Draws match the means of the measured set within 2 %."""
    prompt, output = draw(TabulatedLengths(MADE))
    assert prompt.mean() == pytest.approx(MADE.prompt_mean, rel=0.02)
    assert output.mean() == pytest.approx(MADE.output_mean, rel=0.02)


def test_the_place_of_the_prompt_selects_the_slice_of_the_output() -> None:
    """Short prompts get the outputs of the first slice, long ones those of the second."""
    prompt, output = draw(TabulatedLengths(MADE))
    short = prompt < 500
    assert output[short].max() <= 101
    assert output[prompt > 502].min() >= 201
    assert output[short].mean() == pytest.approx(51, rel=0.02)
    assert output[~short].mean() == pytest.approx(301, rel=0.02)


def test_a_name_stands_for_a_table_of_the_catalogue_it_is_looked_up_in() -> None:
    """``lengths = "made"`` is ``lengths = { kind = "table", name = "made" }``, also of a class."""
    classes = (
        RequestClass(name="a", share=0.5, lengths="made"),
        RequestClass(name="b", share=0.5),
    )
    for lengths in ("made", TableLengths(name="made")):
        found = WorkloadSettings(lengths=lengths, classes=classes).with_entries(MINE)
        assert found.lengths == TabulatedLengths(MADE)
        assert found.classes is not None
        assert [c.lengths for c in found.classes] == [TabulatedLengths(MADE), None]


def test_a_table_of_ones_own_is_drawn_from_and_not_the_packaged_one_of_its_name() -> None:
    """A scenario's lengths are those of its own files, and elsewhere the packaged ones stay."""
    row = {**MINE.added[0][1], "name": "sharegpt-etalon", "prompt": [7] * 21}
    own = Catalog((("lengths", row),))
    settings = WorkloadSettings(lengths="sharegpt-etalon", rate_rps=1.0)
    mine, packaged = (
        build(found, seed=4, rate_rps=None, max_model_len=9999)
        for found in (settings.with_entries(own), settings)
    )
    assert set(mine.prompt_len.tolist()) == {7}
    assert len(set(packaged.prompt_len.tolist())) > 100


def test_an_unknown_table_is_refused_with_the_nearest_name() -> None:
    """The message names the key and what exists."""
    other = RequestClass(name="a", share=1.0, lengths="maid")
    for found, key in (
        (WorkloadSettings(lengths="maid"), r"workload\.lengths"),
        (WorkloadSettings(lengths="made", classes=(other,)), r"workload\.classes\[0\]\.lengths"),
    ):
        with pytest.raises(ConfigError, match=key + " = 'maid': .*made") as caught:
            found.with_entries(MINE)
        assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match=r"workload\.lengths = 'made': no such lengths"):
        draw(TableLengths(name="made"))


def test_geometric_quantiles_meet_in_the_geometric_middle() -> None:
    """Half way between 100 and 10,000 is 1,000."""
    quantiles = Quantiles(np.array([0.0, 1.0]), np.array([100.0, 10_000.0]), geometric=True)
    assert quantiles.at(np.array([0.0, 0.5, 1.0])).tolist() == [100, 1000, 10_000]


@pytest.mark.parametrize(
    ("make", "key"),
    [
        (
            lambda: LognormalLengths(
                prompt_median=1,
                prompt_sigma=1,
                output_median=1,
                output_sigma=1,
                output_min=9,
                output_max=8,
            ),
            "workload.lengths.output_max",
        ),
        (
            lambda: QuantileLengths(levels=(0, 0.5), prompt=(1, 2), output=(1, 2)),
            "workload.lengths.levels",
        ),
        (
            lambda: QuantileLengths(levels=(0, 0.5, 0.5, 1), prompt=(1,) * 4, output=(1,) * 4),
            "workload.lengths.levels",
        ),
        (
            lambda: QuantileLengths(levels=(0, 1), prompt=(2, 1), output=(1, 2)),
            "workload.lengths.prompt",
        ),
        (
            lambda: QuantileLengths(levels=(0, 1), prompt=(1, 2), output=(0, 2)),
            "workload.lengths.output",
        ),
        (
            lambda: QuantileLengths(levels=(0, 1), prompt=(1, 2), output=(1, 2, 3)),
            "workload.lengths.output",
        ),
    ],
)
def test_lengths_that_contradict_themselves_are_refused(
    make: Callable[[], object], key: str
) -> None:
    """The message names the key and is one line."""
    with refused(key=key):
        make()


LENGTH_PAIRS = st.lists(
    st.tuples(st.integers(1, 10_000), st.integers(1, 10_000)), min_size=1, max_size=30
)


@given(pairs=LENGTH_PAIRS, max_model_len=st.integers(2, 12_000))
@examples(100)
def test_too_long_requests_are_marked_or_cut(
    pairs: list[tuple[int, int]], max_model_len: int
) -> None:
    """Rejected: exactly the longer ones, unchanged. Truncated: all fit, short ones unchanged."""
    prompt, output = (np.array(column) for column in zip(*pairs, strict=True))
    too_long = prompt + output > max_model_len
    kept_prompt, kept_output, rejected = fit(prompt, output, max_model_len, "reject")
    assert (rejected == too_long).all()
    assert (kept_prompt == prompt).all()
    assert (kept_output == output).all()
    cut_prompt, cut_output, rejected = fit(prompt, output, max_model_len, "truncate")
    assert not rejected.any()
    assert (cut_prompt + cut_output <= max_model_len).all()
    assert (cut_prompt + cut_output)[too_long].tolist() == [max_model_len] * too_long.sum()
    assert min(cut_prompt.min(), cut_output.min()) >= 1
    assert (cut_prompt[~too_long] == prompt[~too_long]).all()
    assert (cut_output[~too_long] == output[~too_long]).all()
    fitting = prompt < max_model_len
    assert (cut_prompt[fitting] == prompt[fitting]).all()


def test_a_too_long_request_stops_the_run_only_where_asked() -> None:
    """``on_too_long = "error"`` says how many, which, and the way out."""
    prompt, output = np.array([10, 90, 95]), np.array([10, 11, 5])
    with pytest.raises(ConfigError, match=r"1 of 3 requests .* request 1 with 90 \+ 11 tokens"):
        fit(prompt, output, 100, "error")
    assert not fit(prompt, output, 101, "error")[2].any()


def test_every_distribution_is_in_the_registry_under_its_kind() -> None:
    """A distribution that is not there cannot be written in a scenario."""
    assert set(LENGTHS) == {"fixed", "lognormal", "quantiles", "table", "trace"}


@given(
    num_requests=st.integers(1, 200),
    more=st.integers(0, 200),
    lengths=st.sampled_from(
        [
            FixedLengths(prompt_len=3, output_len=4),
            LognormalLengths(prompt_median=9, prompt_sigma=2, output_median=3, output_sigma=2),
            QuantileLengths(levels=(0, 0.3, 1), prompt=(1, 5, 90), output=(2, 2, 7)),
            TabulatedLengths(MADE),
        ]
    ),
)
@examples(100)
def test_a_longer_draw_begins_with_the_shorter_one(
    num_requests: int, more: int, lengths: LengthDistribution
) -> None:
    """So a longer run or a higher rate meets the same requests first."""
    short = draw(lengths, num_requests)
    long = draw(lengths, num_requests + more)
    for a, b in zip(short, long, strict=True):
        assert (a == b[:num_requests]).all()
        assert b.min() >= 1


@pytest.mark.parametrize("name", catalog.names("lengths"))
def test_draws_from_the_catalogue_have_the_means_of_the_measured_sets(name: str) -> None:
    """Means of 200,000 draws within 2 % of those stated beside each table."""
    table = catalog.lengths(name)
    prompt, output = draw(TableLengths(name=name), 200_000)
    assert prompt.mean() == pytest.approx(table.prompt_mean, rel=0.02)
    assert output.mean() == pytest.approx(table.output_mean, rel=0.02)


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("sharegpt-etalon", "lengths_etalon/sharegpt_8k.csv.gz"),
        ("bwb-etalon", "lengths_etalon/bwb_4k.csv.gz"),
        ("azure2023-conv", "traces_azure2023/azure2023_conv.csv.gz"),
    ],
)
def test_draws_keep_the_distribution_and_dependence_of_the_measured_pairs(
    name: str, file: str
) -> None:
    """Kolmogorov distance below 5 % (quantiles stand up to 2.5 % apart), rank correlation 0.03."""
    if not (DATA / file).exists():
        pytest.skip(f"measured set {file} is not here (SIMCLUSTER_DATA)")
    measured = read_trace(DATA / file, arrivals=False)
    prompt, output = draw(TableLengths(name=name))
    assert stats.ks_2samp(prompt, measured.prompt_len).statistic < 0.05
    assert stats.ks_2samp(output, measured.output_len).statistic < 0.05
    drawn = stats.spearmanr(prompt, output).statistic
    assert drawn == pytest.approx(
        stats.spearmanr(measured.prompt_len, measured.output_len).statistic, abs=0.03
    )


@pytest.mark.parametrize("kind", sorted(LENGTHS))
def test_many_requests_are_drawn_in_blocks_to_the_same_lengths(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A long draw is that of its blocks, of every distribution of the package."""
    settings = {
        "fixed": FixedLengths(prompt_len=7, output_len=3),
        "lognormal": LognormalLengths(
            prompt_median=300, prompt_sigma=1, output_median=90, output_sigma=0.5
        ),
        "quantiles": QuantileLengths(levels=(0, 0.5, 1), prompt=(1, 50, 900), output=(1, 9, 40)),
        "table": TableLengths(name="sharegpt-ecoserve"),
    }
    if kind not in settings:
        pytest.skip("not of the package")
    whole = settings[kind].draw(100, stream(3, "lengths"))
    monkeypatch.setattr(lengths_module, "BLOCK", 7)
    blocks = lengths_module.drawn(settings[kind], 100, stream(3, "lengths"))
    for one, other in zip(whole, blocks, strict=True):
        assert other.dtype == np.int32
        assert one.tolist() == other.tolist()
