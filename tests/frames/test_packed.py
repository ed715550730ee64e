"""Packed columns: what comes out is what went in, to the bit, and small where it can be."""

from __future__ import annotations

import itertools
import pickle
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from simcluster.frames import packed
from simcluster.frames.packed import Packed, PackedFrame, num_rows, rows_of, with_column
from simcluster.runs.simulate import run
from simcluster.strategies import FuDG
from simcluster.testing.examples import examples
from simcluster.testing.toy import toy_environment, toy_workload

SIZES = st.integers(1, 40)
INTEGERS = st.one_of(
    *(arrays.arrays(dtype, SIZES) for dtype in (np.int8, np.int32, np.int64)),
    arrays.arrays(np.int64, SIZES, elements=st.integers(0, 300)).map(np.cumsum),
)
FLOATS = st.one_of(
    arrays.arrays(np.float64, SIZES),  # all of them: -0.0, inf, NaN with any bits
    arrays.arrays(np.float64, SIZES, elements=st.integers(0, 1 << 45)).map(lambda x: x / 2**32),
    arrays.arrays(
        np.float64, SIZES, elements=st.sampled_from([np.nan, 0.0, -0.0, 0.1, 1 / 3, 2.0])
    ),
)
TEXTS = st.lists(st.sampled_from(["decode", "mixed", ""]), min_size=1, max_size=40).map(
    lambda texts: np.array(texts, dtype=object)
)


@examples(400)
@given(values=st.one_of(INTEGERS, FLOATS, TEXTS))
def test_values_come_back_to_the_bit(values: Any) -> None:
    """Of every type, whatever they are."""
    back = Packed(values).unpack()
    assert back.dtype == values.dtype
    if values.dtype == object:
        assert back.tolist() == values.tolist()
    else:
        assert back.tobytes() == values.tobytes()


@examples(100)
@given(
    sizes=st.lists(st.integers(1, 6), min_size=1, max_size=5),
    first=st.integers(0, 30),
    length=st.integers(0, 30),
)
def test_rows_of_a_packed_frame_are_those_of_its_columns(
    sizes: list[int], first: int, length: int
) -> None:
    """Over the bounds of chunks, derived columns and added ones too, also in another process."""
    total = sum(sizes)
    values, ends = np.arange(total) * 0.5, np.cumsum([0, *sizes])
    chunks = [Packed(values[a:b]) for a, b in itertools.pairwise(ends)]
    frame = PackedFrame({"time_s": chunks}).derive({"twice_s": _twice}, ["twice_s", "time_s"])
    frame = pickle.loads(pickle.dumps(with_column(frame, "name", np.full(total, "a", object))))
    assert num_rows(frame) == total
    assert list(frame) == ["twice_s", "time_s", "name"]
    some = rows_of(frame, first, first + length)
    for name in frame:
        assert some[name].tolist() == frame[name][first : first + length].tolist()
    assert frame["twice_s"].tolist() == (2 * values).tolist()


def _twice(columns: Any) -> Any:
    return 2 * columns["time_s"]


def test_a_run_is_the_same_whether_packed_or_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each column of each frame, of a run with transfers, in chunks of five rows."""
    load = toy_workload([(0.002, 30 + k, 1 + k * 7 % 40) for k in range(40)])
    strategy = FuDG(name="s", prefill_instances=1, decode_instances=1)
    plain = run(toy_environment(), strategy, load).columns
    monkeypatch.setattr(packed, "ROWS", 5)
    small = run(toy_environment(), strategy, load).columns
    assert isinstance(small["requests"], PackedFrame)
    assert isinstance(small["transfers"], PackedFrame)
    for name, columns in plain.items():
        assert list(small[name]) == list(columns)
        for column, values in columns.items():
            back = small[name][column]
            assert back.dtype == values.dtype
            np.testing.assert_array_equal(back, values)


def test_times_and_levels_take_the_bytes_of_their_changes() -> None:
    """Rising times of the grid take four of eight, small counts one, a constant none."""
    rng = np.random.default_rng(0)
    times = np.rint(np.cumsum(rng.uniform(0.0, 0.9, 10_000)) * 2**32) / 2**32
    assert len(Packed(times)._bytes) == 4
    assert len(Packed(rng.integers(0, 200, 10_000))._bytes) == 1
    assert len(Packed(np.full(10_000, 0.37))._bytes) == 0
