"""`simcluster trace`: counted by hand on traces of a few rows."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from simcluster.cli import main
from simcluster.studies import trace_file
from simcluster.workload.replay import TraceReplay
from simcluster.workload.traces import read_trace

# Bailian's: seconds, blocks of 16 tokens. Gaps 1, 1, 2, 4 s; 48 + 32 of 240 tokens are shared.
BAILIAN = [(0, 48, [1, 2, 3]), (1, 64, [1, 2, 3, 4]), (2, 48, [1, 2, 9]), (4, 48, [7, 8, 9]),
           (8, 32, [5, 6])]  # fmt: skip


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A trace of five requests in Bailian's format."""
    rows = [
        {"chat_id": n, "timestamp": t, "input_length": p, "output_length": 10 * n, "hash_ids": ids}
        for n, (t, p, ids) in enumerate(BAILIAN, 1)
    ]
    path = tmp_path / "trace.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def trace(file: Path, *options: str) -> Result:
    """`simcluster trace` with these options."""
    return CliRunner().invoke(main, ["trace", str(file), *options])


def test_the_numbers_are_those_of_the_rows(file: Path) -> None:
    """Four gaps in 8 s; their mean is 2, their standard deviation sqrt(1.5); quantiles by hand."""
    known = json.loads(trace(file, "--json").stdout)
    assert known["format"] == "bailian"
    assert known["time_unit"] == "s"
    assert known["block_size"] == 16
    assert known["num_requests"] == 5
    assert known["num_sessions"] is None
    assert known["span_s"] == 8.0
    assert known["rate_rps"] == 0.5
    assert known["gap_cv"] == pytest.approx(np.sqrt(1.5) / 2)
    assert known["prompt_len"] == {"mean": 48, "p50": 48, "p90": 57.6, "p99": 63.36, "max": 64}
    assert known["output_len"]["mean"] == 30
    assert known["reused_token_share"] == pytest.approx((48 + 32) / 240)
    assert known["notes"] == ["not simulated: column chat_id"]


def test_the_text_says_the_same(file: Path) -> None:
    """With the place where the format is published, and what is not simulated."""
    text = trace(file).stdout
    for line in (
        "bailian, times in s, blocks of 16 tokens; 5 requests over 8 s (0.5 requests/s)",
        "Format: alibaba-edu/qwen-bailian-usagetraces-anon",
        "prompt tokens that a cache without end holds (%)   33.3",
        "- not simulated: column chat_id",
    ):
        assert " ".join(line.split()) in " ".join(text.split())
    assert max(map(len, text.split("In a scenario")[0].splitlines())) <= 80


def test_bars_show_the_gaps_that_end_in_each_part(file: Path) -> None:
    """Four parts of 2 s: two gaps end in the first, one in the second and one in the last."""
    edges_s, rate_rps = trace_file.rate_over_time(read_trace(file).clock_s, 12)
    assert edges_s.tolist() == [0, 2, 4, 6, 8]
    assert rate_rps.tolist() == [1.0, 0.5, 0.0, 0.5]
    bars = [line.count("#") for line in trace(file).stdout.splitlines() if "#" in line]
    assert bars == [50, 25, 25]


@pytest.mark.parametrize("clock_s", [[0.0, 0.0, 0.0, 3.0, 4.0], [0.0, 1.0, 2.0, 3.0, 4.0], [0, 4]])
@pytest.mark.parametrize("most", [1, 2, 3, 100])
def test_the_mean_of_the_parts_is_the_mean_rate(clock_s: list[float], most: int) -> None:
    """Every gap is in one part, those of 0 at the start too."""
    _, rate_rps = trace_file.rate_over_time(np.array(clock_s), most)
    assert rate_rps.mean() == pytest.approx((len(clock_s) - 1) / 4)


def test_the_line_for_a_scenario_reads_the_same_requests(file: Path) -> None:
    """Format, unit, block size and window told; nothing is left to guess."""
    text = trace(file, "--start", "1", "--end", "8").stdout
    keys = tomllib.loads(text.splitlines()[-1])["trace"]
    assert keys == {
        "path": str(file),
        "format": "bailian",
        "time_unit": "s",
        "block_size": 16,
        "start_s": 1.0,
        "end_s": 8.0,
    }
    again = TraceReplay(**keys).read()
    assert again.arrival_s is not None
    assert again.arrival_s.tolist() == [0, 1, 3]


def test_dates_have_no_unit_to_tell(tmp_path: Path) -> None:
    """Azure's: the line names the format alone."""
    file = tmp_path / "azure.csv"
    file.write_text(
        "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.68,374,44\n"
        "2023-11-16 18:15:50.68,396,109\n",
        encoding="utf-8",
    )
    text = trace(file).stdout
    assert "azure-2023, dates; 2 requests over 4 s" in text
    assert text.splitlines()[-1] == f'trace = {{ path = "{file}", format = "azure-2023" }}'


def test_requests_that_come_at_once_have_no_rate(tmp_path: Path) -> None:
    """No bars, no division by 0."""
    file = tmp_path / "burst.csv"
    file.write_text("arrival_s,prompt_len,output_len\n0,10,1\n0,20,1\n", encoding="utf-8")
    called = trace(file)
    assert called.exit_code == 0, called.output
    assert "mean rate" not in called.stdout
    known = json.loads(trace(file, "--json").stdout)
    assert known["rate_rps"] is known["gap_cv"] is known["reused_token_share"] is None


def test_sessions_are_counted_by_their_first_turns(tmp_path: Path) -> None:
    """Two sessions 10 s apart, three requests."""
    file = tmp_path / "chat.jsonl"
    file.write_text(
        '{"session_id": "a", "timestamp": 0, "input_length": 10, "output_length": 5}\n'
        '{"session_id": "a", "delay": 500, "input_length": 30, "output_length": 5}\n'
        '{"session_id": "b", "timestamp": 10000, "input_length": 10, "output_length": 5}\n',
        encoding="utf-8",
    )
    known = json.loads(trace(file, "--json").stdout)
    assert (known["num_requests"], known["num_sessions"], known["rate_rps"]) == (3, 2, 0.1)
    assert "sessions/s" in trace(file).stdout


def test_only_the_first_requests_of_a_long_trace_are_replayed(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two requests the second finds 48 of 112 tokens; the label says how many were taken."""
    monkeypatch.setattr(trace_file, "MAX_REPLAYED", 2)
    assert re.search(r"tokens of the first 2 that .* holds \(%\) +42\.9\n", trace(file).stdout)


def test_a_picture_is_written_where_asked(file: Path, tmp_path: Path) -> None:
    """As PNG; an ending that is no picture's is refused in one line."""
    picture = tmp_path / "trace.png"
    assert trace(file, "-o", str(picture)).exit_code == 0
    assert picture.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    called = trace(file, "-o", str(tmp_path / "trace.xyz"))
    assert called.exit_code == 1
    assert "cannot be written" in called.stderr
    assert not (tmp_path / "trace.xyz").exists()


def test_what_cannot_be_told_is_refused_until_it_is(tmp_path: Path) -> None:
    """0.5 s and 0.5 ms both give rates that occur: the options that decide are named."""
    file = tmp_path / "either.jsonl"
    file.write_text(
        "".join(
            f'{{"timestamp": {t}, "input_length": 100, "output_length": 5}}\n'
            for t in (0.5, 40.25, 80.75)
        ),
        encoding="utf-8",
    )
    called = trace(file)
    assert called.exit_code == 1
    assert "time_unit" in called.stderr
    told = trace(file, "--time-unit", "s", "--json")
    assert json.loads(told.stdout)["span_s"] == 80.25
