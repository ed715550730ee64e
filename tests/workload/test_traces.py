"""Traces: every format is read, every bad file is refused in one line that says where."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.refusals import refused
from simcluster.errors import ConfigError, DataError, SimclusterError
from simcluster.testing.examples import examples
from simcluster.units import TICK_S
from simcluster.workload import Workload, WorkloadSettings, build
from simcluster.workload.formats import TraceFormat
from simcluster.workload.lengths import FixedLengths
from simcluster.workload.recognise import TraceOptions
from simcluster.workload.renewal import PoissonArrivals
from simcluster.workload.replay import TraceArrivals, TraceFile, TraceLengths
from simcluster.workload.traces import read_trace

DATA = Path(
    os.environ.get("SIMCLUSTER_DATA", Path(__file__).resolve().parents[2] / "../shared/data")
)

PLAIN = """arrival_s,prompt_len,output_len
0.5,100,10
1.5,200,20
1.5,300,30
4.5,400,40
"""
AZURE = """arrival_s,input_tokens,output_tokens
0.0,100,10
1.0,200,20
1.0,300,30
4.0,400,40
"""
AZURE_ORIGINAL = """TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 23:59:59.0000000,100,10
2023-11-17 00:00:00.0000000,200,20
2023-11-17 00:00:00.0000000,300,30
2023-11-17 00:00:03.0000000,400,40
"""
MOONCAKE = "\n".join(
    json.dumps({"timestamp": t, "input_length": p, "output_length": o, "hash_ids": [0]})
    for t, p, o in ((0, 100, 10), (1000, 200, 20), (1000, 300, 30), (4000, 400, 40))
)


def written(folder: Path, content: str, name: str = "trace.csv") -> Path:
    """A file with `content`."""
    file = folder / name
    file.write_text(content, encoding="utf-8")
    return file


def requests_of(settings: WorkloadSettings, rate_rps: float | None = None) -> Workload:
    """Requests of a run with a model that takes any length."""
    return build(settings, seed=0, rate_rps=rate_rps, max_model_len=1_000_000)


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gzip"])
@pytest.mark.parametrize("stated", [False, True], ids=["auto", "stated"])
@pytest.mark.parametrize(
    ("content", "format"),
    [
        (PLAIN, "csv"),
        (AZURE, "azure-2023"),
        (AZURE_ORIGINAL, "azure-2023"),
        (AZURE_ORIGINAL.replace(".0000000,", "+00:00,"), "azure-2023"),
        (MOONCAKE, "mooncake"),
        ("\n" + MOONCAKE + "\n\n", "mooncake"),
        (PLAIN.replace("\n", "\r\n") + "\r\n", "csv"),
        ("\ufeff" + PLAIN, "csv"),
        (PLAIN.replace(",10\n", ",10.0\n").replace("0.5", " 0.5 "), "csv"),
    ],
)
def test_every_format_is_read(
    tmp_path: Path, content: str, format: TraceFormat, stated: bool, packed: bool
) -> None:
    """The same four requests, whichever way they are written and packed."""
    file = tmp_path / "requests.dat"
    data = content.encode()
    file.write_bytes(gzip.compress(data) if packed else data)
    trace = read_trace(file, TraceOptions(format=format if stated else "auto"))
    assert trace.arrival_s is not None
    assert trace.arrival_s.tolist() == [0, 1, 1, 4]
    assert trace.prompt_len.tolist() == [100, 200, 300, 400]
    assert trace.output_len.tolist() == [10, 20, 30, 40]


def test_columns_in_another_order_and_further_columns_do_not_matter(tmp_path: Path) -> None:
    """Columns go by their names."""
    file = written(tmp_path, "output_len,user,arrival_s,prompt_len\n7,ann,0,5\n8,bob,1,6\n")
    trace = read_trace(file)
    assert trace.prompt_len.tolist() == [5, 6]
    assert trace.output_len.tolist() == [7, 8]


HEADER = "arrival_s,prompt_len,output_len\n"


@pytest.mark.parametrize(
    ("content", "format", "says"),
    [
        ("", "auto", ["empty"]),
        (HEADER, "auto", ["no request"]),
        ("", "mooncake", ["empty"]),
        (HEADER + "0,1,1\n2,1,1\n1,1,1\n", "auto", ["line 4", "arrival_s = '1'", "earlier"]),
        (HEADER + "0,0,1\n", "auto", ["line 2", "prompt_len = '0'", "whole number"]),
        (HEADER + "0,1,-3\n", "auto", ["line 2", "output_len = '-3'", "whole number"]),
        (HEADER + "0,1.5,3\n", "auto", ["line 2", "prompt_len = '1.5'", "whole number"]),
        (HEADER + "0,1,99999999999\n", "auto", ["line 2", "output_len = '99999999999'"]),
        (HEADER + "0,1,1\n\n1,one,1\n", "auto", ["line 4", "prompt_len = 'one'"]),
        (HEADER + "0,1,\n", "auto", ["line 2", "output_len = ''"]),
        (HEADER + "nan,1,1\n", "auto", ["line 2", "arrival_s = 'nan'", "must be a time"]),
        (HEADER + "0,1,1\ninf,1,1\n", "auto", ["line 3", "arrival_s = 'inf'"]),
        (HEADER + "0,1\n", "auto", ["line 2", "2 cells", "3"]),
        (HEADER + "0,1,1,1\n", "auto", ["line 2", "4 cells"]),
        ("arrival_s,prompt_len\n0,1\n", "auto", ["line 1", "missing column output_len;"]),
        ("time,tokens\n0,1\n", "auto", ["missing columns arrival_s, prompt_len, output_len"]),
        ("arrival_s,input_tokens\n0,1\n", "auto", ["missing column output_tokens"]),
        (PLAIN, "azure-2023", ["missing columns input_tokens, output_tokens"]),
        ("0,1,1\n1,1,1\n", "auto", ["missing columns", "found '0', '1'"]),
        (
            AZURE_ORIGINAL.replace("2023-11-17 00:00:03.0000000", "yesterday"),
            "auto",
            ["line 5", "TIMESTAMP = 'yesterday'", "must be a time"],
        ),
        (MOONCAKE + "\n{oops\n", "auto", ["line 5", "no JSON object"]),
        (MOONCAKE + "\n[1]\n", "auto", ["line 5", "no JSON object"]),
        (PLAIN, "mooncake", ["line 1", "missing columns timestamp, input_length, output_length"]),
        (MOONCAKE.replace("output_length", "outputs"), "auto", ["line 1", "output_length"]),
        (MOONCAKE.replace("300", "null"), "auto", ["line 3", "input_length = None"]),
        (MOONCAKE.replace("300", "true"), "auto", ["line 3", "input_length = True"]),
        (MOONCAKE.replace('"timestamp": 4000', '"time": 4'), "auto", ["line 4", "timestamp"]),
        (MOONCAKE.replace("4000", "400"), "auto", ["line 4", "timestamp = 400", "earlier"]),
        (HEADER + '0,"1\n', "auto", ["line"]),
    ],
)
def test_a_bad_trace_is_refused_in_one_line(
    tmp_path: Path, content: str, format: TraceFormat, says: list[str]
) -> None:
    """File, line, column, value, rule and remedy: enough to mend it."""
    file = written(tmp_path, content)
    with pytest.raises(DataError) as caught:
        read_trace(file, TraceOptions(format=format))
    message = str(caught.value)
    assert message.startswith(str(file))
    assert "\n" not in message
    assert message.endswith(".")
    for words in says:
        assert words in message


def test_a_file_that_cannot_be_read_is_refused_in_one_line(tmp_path: Path) -> None:
    """Missing files (with the nearest name), folders, broken gzip, other encodings."""
    written(tmp_path, PLAIN, "chat.csv")
    (tmp_path / "cut.csv.gz").write_bytes(gzip.compress(PLAIN.encode() * 100)[:60])
    (tmp_path / "latin.csv").write_bytes(b"arrival_s,\xe9\n")
    for name, words in (
        ("chats.csv", "no such file. Did you mean 'chat.csv'"),
        ("none/chat.csv", "is no folder either"),
        (".", "cannot be read"),
        ("cut.csv.gz", "cannot be read"),
        ("latin.csv", "not UTF-8"),
    ):
        with refused(words, error=DataError):
            read_trace(tmp_path / name)


@given(content=st.text(alphabet=st.sampled_from('0123456789.,-eE\n\r"{}: \x00aé'), max_size=60))
@examples(200)
def test_no_text_is_read_into_nonsense(
    tmp_path_factory: pytest.TempPathFactory, content: str
) -> None:
    """Whatever stands below the header gives requests that keep the laws, or one line."""
    file = tmp_path_factory.getbasetemp() / "any.csv"
    file.write_text(HEADER + content, encoding="utf-8", newline="")
    refusal = ""
    try:
        trace = read_trace(file)
    except SimclusterError as error:
        refusal = str(error)
    if refusal:
        assert len(refusal.splitlines()) == 1
        return
    assert trace.arrival_s is not None
    assert (np.diff(trace.arrival_s) >= 0).all()
    assert trace.arrival_s[0] == 0
    assert min(trace.prompt_len.min(), trace.output_len.min()) >= 1


def test_a_trace_is_replayed_as_it_stands(tmp_path: Path) -> None:
    """Arrivals count from the first request; the offered rate is gaps over time."""
    file = written(tmp_path, PLAIN)
    requests = requests_of(WorkloadSettings(trace=str(file)))
    assert requests.arrival_s.tolist() == [0, 1, 1, 4]
    assert requests.prompt_len.tolist() == [100, 200, 300, 400]
    assert requests.rate_rps == 3 / 4


def test_a_trace_is_scaled_to_a_rate(tmp_path: Path) -> None:
    """Gaps are scaled alike, so that their mean is 1 / rate; lengths stay in place."""
    file = written(tmp_path, PLAIN)
    requests = requests_of(WorkloadSettings(trace=str(file)), rate_rps=6.0)
    assert requests.arrival_s.tolist() == [0, 0.125, 0.125, 0.5]
    assert requests.rate_rps == 6.0
    assert requests.prompt_len.tolist() == [100, 200, 300, 400]


def test_a_trace_is_cut_to_a_number_before_it_is_scaled(tmp_path: Path) -> None:
    """The mean rate of the requests that are used is the rate asked for."""
    file = written(tmp_path, PLAIN)
    requests = requests_of(WorkloadSettings(trace=str(file), num_requests=3), rate_rps=4.0)
    assert requests.arrival_s.tolist() == [0, 0.5, 0.5]


def test_a_trace_is_cut_to_a_duration_after_it_is_scaled(tmp_path: Path) -> None:
    """duration_s is time of the run, not of the file."""
    file = written(tmp_path, PLAIN)
    trace = WorkloadSettings(trace=str(file), duration_s=2.0)
    assert requests_of(trace).num_requests == 3
    assert requests_of(trace, rate_rps=3.0).num_requests == 4


def test_a_window_of_a_trace_starts_its_own_clock(tmp_path: Path) -> None:
    """start_s is in, end_s is out; both count from the first request of the file."""
    file = written(tmp_path, PLAIN)
    window = TraceFile(path=str(file), start_s=1, end_s=4)
    requests = requests_of(WorkloadSettings(trace=window))
    assert requests.arrival_s.tolist() == [0, 0]
    assert requests.prompt_len.tolist() == [200, 300]
    later = requests_of(WorkloadSettings(trace=TraceFile(path=str(file), start_s=0.5)))
    assert later.prompt_len.tolist() == [200, 300, 400]


def test_arrivals_and_lengths_can_come_from_a_trace_one_by_one(tmp_path: Path) -> None:
    """Trace arrivals with fixed lengths, Poisson arrivals with trace lengths, both together."""
    file = str(written(tmp_path, PLAIN))
    fixed = FixedLengths(prompt_len=5, output_len=6)
    arrivals = requests_of(WorkloadSettings(arrivals=TraceArrivals(path=file), lengths=fixed))
    assert arrivals.arrival_s.tolist() == [0, 1, 1, 4]
    assert arrivals.prompt_len.tolist() == [5] * 4
    lengths = WorkloadSettings(
        arrivals=PoissonArrivals(), lengths=TraceLengths(path=file, start_s=1), num_requests=3
    )
    assert requests_of(lengths, rate_rps=1.0).prompt_len.tolist() == [200, 300, 400]
    both = requests_of(
        WorkloadSettings(arrivals=TraceArrivals(path=file), lengths=TraceLengths(path=file))
    )
    alone = requests_of(WorkloadSettings(arrivals=TraceArrivals(path=file)))
    for requests in (both, alone):
        assert requests.arrival_s.tolist() == [0, 1, 1, 4]
        assert requests.output_len.tolist() == [10, 20, 30, 40]


def test_lengths_alone_need_no_arrivals_in_the_file(tmp_path: Path) -> None:
    """A file of two columns gives lengths, in order or sampled in pairs."""
    file = str(written(tmp_path, "input_tokens,output_tokens\n1,10\n2,20\n3,30\n"))
    sampled = requests_of(
        WorkloadSettings(
            lengths=TraceLengths(path=file, order="sampled"), num_requests=30_000, rate_rps=1.0
        )
    )
    assert (sampled.output_len == 10 * sampled.prompt_len).all()
    fewer = requests_of(
        WorkloadSettings(
            lengths=TraceLengths(path=file, order="sampled"), num_requests=101, rate_rps=1.0
        )
    )
    assert (fewer.prompt_len == sampled.prompt_len[:101]).all()
    counts = np.bincount(sampled.prompt_len)[1:]
    # binomial counts, four standard deviations
    assert (np.abs(counts - 10_000) < 4 * np.sqrt(30_000 * 2 / 9)).all()
    short = WorkloadSettings(lengths=TraceLengths(path=file), num_requests=4, rate_rps=1.0)
    with pytest.raises(ConfigError, match=r"3 rows for 4 requests\. Set order = \"sampled\""):
        requests_of(short)


@pytest.mark.parametrize(
    ("keys", "rate_rps", "says"),
    [
        ({"num_requests": 5}, None, "workload.num_requests = 5: .* has 4 requests"),
        ({"trace": {"start_s": 9.0}}, None, r"no request from 9 s on .* times from 0 to 4 s"),
        (
            {"trace": {"start_s": 1.0, "end_s": 2.0}, "num_requests": 3},
            None,
            "has 2 requests in the window",
        ),
        ({"trace": {"start_s": 1.0, "end_s": 2.0}}, 2.0, "all 2 requests arrive at once"),
        ({"num_requests": 1}, 2.0, "all 1 requests arrive at once"),
    ],
)
def test_a_trace_that_cannot_give_what_is_asked_is_refused(
    tmp_path: Path, keys: dict[str, object], rate_rps: float | None, says: str
) -> None:
    """One line with the key."""
    path = str(written(tmp_path, PLAIN))
    window = keys.pop("trace", {})
    assert isinstance(window, dict)
    trace = WorkloadSettings(trace=TraceFile(path=path, **window), **keys)  # type: ignore[arg-type]
    with pytest.raises(SimclusterError, match=says) as caught:
        requests_of(trace, rate_rps=rate_rps)
    assert "\n" not in str(caught.value)


def test_a_window_that_ends_before_it_starts_is_refused() -> None:
    """The key is the one in the file."""
    with pytest.raises(ConfigError) as caught:
        TraceArrivals(path="x", start_s=5, end_s=5)
    assert caught.value.key == "workload.arrivals.end_s"


def test_one_long_row_does_not_end_a_trace_run(tmp_path: Path) -> None:
    """By default it is rejected and counts as missed; the others run."""
    file = str(written(tmp_path, PLAIN))
    requests = build(WorkloadSettings(trace=file), seed=0, rate_rps=None, max_model_len=330)
    assert requests.rejected.tolist() == [False, False, False, True]
    assert requests.prompt_len.tolist() == [100, 200, 300, 400]
    cut = build(
        WorkloadSettings(trace=file, on_too_long="truncate"),
        seed=0,
        rate_rps=None,
        max_model_len=330,
    )
    assert not cut.rejected.any()
    assert cut.prompt_len.tolist() == [100, 200, 300, 329]
    assert cut.output_len.tolist() == [10, 20, 30, 1]
    with pytest.raises(ConfigError, match="1 of 4 requests are longer"):
        build(
            WorkloadSettings(trace=file, on_too_long="error"),
            seed=0,
            rate_rps=None,
            max_model_len=330,
        )


def test_a_hundred_thousand_rows_are_read_whole(tmp_path: Path) -> None:
    """Long traces are the ordinary case."""
    rows = "".join(f"{i * 0.25},{i % 900 + 1},{i % 90 + 1}\n" for i in range(100_000))
    file = written(tmp_path, HEADER + rows)
    trace = read_trace(file)
    assert len(trace.prompt_len) == 100_000


CELLS = st.one_of(
    st.integers(1, 5000).map(str),
    st.sampled_from(["1.0", " 7 ", "2e2", "+3", "0", "-1", "1.5", "nan", "inf", "x", "", "1_0"]),
)


@examples(150)
@given(
    times=st.lists(st.floats(0, 1e4), min_size=1, max_size=6),
    cells=st.lists(st.tuples(CELLS, CELLS), min_size=6, max_size=6),
    blank_line=st.booleans(),
    sort=st.booleans(),
)
def test_a_file_is_read_as_its_cells_say_or_refused_for_one_that_is_wrong(
    times: list[float],
    cells: list[tuple[str, str]],
    blank_line: bool,
    sort: bool,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """Every cell by itself, without arrays."""
    ordered = sorted(times) if sort else times
    rows = list(zip(ordered, *zip(*cells, strict=True), strict=False))
    text = "".join(f"{t!r},{p},{o}\n" for t, p, o in rows)
    trace = written(tmp_path_factory.mktemp("cells"), HEADER + text + "\n" * blank_line)
    wrong = [
        f"line {line}, {column} = {cell!r}: "
        for column, place in (("prompt_len", 1), ("output_len", 2))
        for line, row in enumerate(rows, start=2)
        if not is_length(cell := row[place])
    ] + [
        f"line {line + 1}, arrival_s = {repr(ordered[line - 1])!r}: is earlier"
        for line in range(2, len(rows) + 1)
        if ordered[line - 1] < ordered[line - 2]
    ]
    if wrong:
        with pytest.raises(DataError) as caught:
            read_trace(trace)
        assert any(words in str(caught.value) for words in wrong)
        return
    read = read_trace(trace)
    assert read.prompt_len.tolist() == [int(float(p)) for _, p, _ in rows]
    assert read.output_len.tolist() == [int(float(o)) for _, _, o in rows]
    assert read.arrival_s is not None
    assert read.arrival_s.tolist() == [t - ordered[0] for t in ordered[: len(rows)]]


def is_length(cell: str) -> bool:
    """Whole and above 0."""
    try:
        return float(cell) >= 1 and float(cell) == int(float(cell))
    except (ValueError, OverflowError):
        return False


@given(
    gaps=st.lists(st.floats(0, 100), min_size=2, max_size=40).filter(lambda g: sum(g[1:]) > 0.01),
    rate_rps=st.floats(0.01, 1000),
)
@examples(60)
def test_scaling_keeps_the_pattern(
    tmp_path_factory: pytest.TempPathFactory, gaps: list[float], rate_rps: float
) -> None:
    """Law: scaled arrivals over original arrivals is one number, and the mean rate is met."""
    file = tmp_path_factory.getbasetemp() / "pattern.csv"
    arrival_s = np.cumsum(gaps)
    file.write_text(HEADER + "".join(f"{float(t)!r},1,1\n" for t in arrival_s))
    scaled = requests_of(WorkloadSettings(trace=str(file)), rate_rps=rate_rps).arrival_s
    since_first = arrival_s - arrival_s[0]
    expected = since_first * ((len(gaps) - 1) / since_first[-1] / rate_rps)
    np.testing.assert_allclose(scaled, expected, rtol=1e-12, atol=TICK_S)


@pytest.mark.parametrize(
    ("name", "num_requests", "rate_rps", "prompt_mean", "output_mean"),
    [
        ("traces_azure2023/azure2023_conv.csv.gz", 19_366, 5.53, 1154.7, 211.1),
        ("traces_azure2023/azure2023_code.csv.gz", 8_819, 2.57, 2047.8, 27.9),
        ("traces_mooncake/conversation_trace.jsonl.gz", 12_031, 3.4, 12_035, 343),
        ("traces_mooncake/synthetic_trace.jsonl.gz", 3_993, 3_993 / 1_022, 15_325, 149),
    ],
)
def test_published_traces_have_their_published_numbers(
    name: str, num_requests: int, rate_rps: float, prompt_mean: float, output_mean: float
) -> None:
    """Rows, mean rate and mean lengths as their publishers state them."""
    file = DATA / name
    if not file.exists():
        pytest.skip(f"measured set {name} is not here (SIMCLUSTER_DATA)")
    requests = requests_of(WorkloadSettings(trace=str(file)))
    assert requests.num_requests == num_requests
    assert requests.rate_rps == pytest.approx(rate_rps, abs=0.006)
    assert requests.prompt_len.mean() == pytest.approx(prompt_mean, rel=1e-3)
    assert requests.output_len.mean() == pytest.approx(output_mean, rel=3e-3)
    assert not requests.rejected.any()
