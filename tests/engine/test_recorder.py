"""What is recorded comes back as it was, however it is kept in between."""

from __future__ import annotations

from math import nan

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simcluster.engine import log as logs
from simcluster.engine import request_log
from simcluster.engine.log import Log
from simcluster.engine.request_log import RequestLog
from simcluster.frames import packed
from simcluster.frames.schema import REQUESTS, Column
from simcluster.request import Request, RequestStatus
from simcluster.testing.examples import examples

SCHEMA = {
    "number": Column("int32", "", "a number"),
    "time_s": Column("float64", "s", "a time"),
    "name": Column("str", "", "a name"),
}
ROWS = st.lists(
    st.tuples(
        # Columns that are 0 for long are kept in another way.
        st.sampled_from([0, 0, 0, 0, 7, -1]),
        st.sampled_from([0.0, 0.0, 0.0, 1.5, nan]),
        st.sampled_from(["decode", "mixed", ""]),
    ),
    max_size=40,
)


@examples(200)
@given(rows=ROWS, chunk=st.integers(1, 5), packed_rows=st.sampled_from([1 << 16, 7, 3]))
def test_a_log_gives_back_its_rows(
    rows: list[tuple[int, float, str]], chunk: int, packed_rows: int
) -> None:
    """In order and typed, over the ends of chunks and the growth of arrays; then it is empty."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(logs, "CHUNK", chunk)
        patch.setattr(packed, "ROWS", packed_rows)
        log = Log(SCHEMA)
        for row in rows:
            log.add(row)
        columns = log.columns()
        again = log.columns()
    for name, position in (("number", 0), ("time_s", 1), ("name", 2)):
        expected = np.array([row[position] for row in rows], columns[name].dtype)
        assert repr(columns[name].tolist()) == repr(expected.tolist())
        assert len(again[name]) == 0
    assert columns["number"].dtype == np.int32
    assert columns["time_s"].dtype == np.float64


@examples(200)
@given(
    fates=st.lists(st.sampled_from(["finished", "rejected", "unfinished", "held"]), max_size=25),
    chunk=st.integers(1, 5),
    packed_rows=st.sampled_from([1 << 16, 7, 3]),
    order=st.randoms(use_true_random=False),
)
def test_requests_are_rows_by_id_whenever_they_end(
    fates: list[str], chunk: int, packed_rows: int, order: object
) -> None:
    """Those that ended in any order, and those that did not."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(request_log, "CHUNK", chunk)
        patch.setattr(packed, "ROWS", packed_rows)
        log = RequestLog()
        requests = []
        for number, _ in enumerate(fates):
            requests.append(Request(number, 0.5 * number, 100 + number, 10))
            log.arrived(requests[-1])
        ending = [r for r, fate in zip(requests, fates, strict=True) if fate != "unfinished"]
        order.shuffle(ending)  # type: ignore[attr-defined]
        for request in ending:
            fate = fates[request.request_id]
            rejected = fate == "rejected"
            request.status = RequestStatus.REJECTED if rejected else RequestStatus.FINISHED
            request.num_preemptions = request.request_id % 2
            if fate == "finished":
                request.first_output_s = request.arrival_s + 1.0
                request.last_output_s = request.arrival_s + 10.0
            log.ended(request)
        columns = log.columns(["the model"])
    assert list(columns) == list(REQUESTS)
    assert columns["request_id"].tolist() == list(range(len(fates)))
    for name in ("arrival_s", "prompt_len", "output_len", "num_preemptions", "first_output_s"):
        assert repr(columns[name].tolist()) == repr([getattr(r, name) for r in requests])
    # Finished, but its last token never came out: its user has not seen the end.
    assert columns["status"].tolist() == [f.replace("held", "unfinished") for f in fates]
    assert columns["model"].tolist() == ["the model"] * len(fates)
    ended = [fate == "finished" for fate in fates]
    assert columns["tpot_s"][ended].tolist() == [1.0] * sum(ended)
    assert np.isnan(columns["quality"]).all()
