"""Formats of traces, each recreated by hand from its published specification in a few rows.

What is right comes from the specification and from arithmetic on the rows: 8 s and 5 requests are
0.5 requests/s where stamps are seconds.
"""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simcluster.errors import ConfigError, DataError
from simcluster.kvcache.prefix import PrefixPool
from simcluster.request import Request
from simcluster.workload import Workload, WorkloadSettings, build, files
from simcluster.workload.block_ids import IdColumn, chained, fitting_sizes
from simcluster.workload.hashes import BlockHashes
from simcluster.workload.recognise import TraceOptions
from simcluster.workload.replay import TraceFile
from simcluster.workload.traces import Trace, read_trace

Rows = list[dict[str, Any]]


def written(folder: Path, content: str | Rows, name: str = "trace") -> Path:
    """A file with `content`, rows as JSON lines."""
    if not isinstance(content, str):
        content = "".join(json.dumps(row) + "\n" for row in content)
    file = folder / name
    file.write_text(content, encoding="utf-8")
    return file


def read(folder: Path, content: str | Rows, **options: Any) -> Trace:
    """What is read of a file with `content`."""
    return read_trace(written(folder, content), TraceOptions(**options))


def workload_of(folder: Path, content: str | Rows, **keys: Any) -> Workload:
    """The requests of a run of it, for a model that takes any length."""
    trace = TraceFile(path=str(written(folder, content)), **keys)
    return build(WorkloadSettings(trace=trace), seed=0, rate_rps=None, max_model_len=10**7)


def cached_tokens(trace: Trace) -> list[int]:
    """Tokens of each prompt that those before it left in a cache without end, one by one.

    From the ids themselves, as `simcluster.studies.prefix_reuse` counts them.
    """
    hashes = trace.hashes
    assert hashes is not None
    size, seen, found = hashes.tokens_per_id, set[int](), []
    for row, prompt_len in enumerate(trace.prompt_len.tolist()):
        ids = [i for run in hashes.runs(row, size) for i in run][: prompt_len // size]
        known = [i in seen for i in ids]
        found.append(size * (known.index(False) if False in known else len(ids)))
        seen.update(i for run in hashes.runs(row, size) for i in run)
    return found


# Formats ----------------------------------------------------------------------------------------

MOONCAKE = {
    # FAST25-release/traces: conversation, toolagent and synthetic are alike
    "conversation": [
        {"timestamp": 0, "input_length": 1200, "output_length": 52, "hash_ids": [0, 1, 2]},
        {"timestamp": 3000, "input_length": 1800, "output_length": 26, "hash_ids": [0, 1, 3, 4]},
        {"timestamp": 12000, "input_length": 700, "output_length": 52, "hash_ids": [5, 6]},
    ],
    "toolagent": [
        {"timestamp": 0, "input_length": 9013, "output_length": 4, "hash_ids": [*range(18)]},
        {"timestamp": 27, "input_length": 9013, "output_length": 4, "hash_ids": [*range(18)]},
        {"timestamp": 12000, "input_length": 6001, "output_length": 1, "hash_ids": [*range(12)]},
    ],
    "synthetic": [
        {"timestamp": 0, "input_length": 512, "output_length": 1, "hash_ids": [0]},
        {"timestamp": 0, "input_length": 513, "output_length": 9, "hash_ids": [0, 1]},
        {
            "timestamp": 12000,
            "input_length": 100_000,
            "output_length": 9,
            "hash_ids": [*range(196)],
        },
    ],
}


@pytest.mark.parametrize("name", MOONCAKE)
def test_mooncake_is_in_ms_and_blocks_of_512(tmp_path: Path, name: str) -> None:
    """Twelve seconds; full blocks that are alike from the start are found again."""
    trace = read(tmp_path, MOONCAKE[name])
    assert trace.summary.startswith("mooncake, times in ms, blocks of 512 tokens; 3 requests over")
    assert trace.arrival_s is not None
    assert trace.arrival_s[-1] == 12.0
    assert trace.rate_rps == 2 / 12
    expected = {
        "conversation": [0, 1024, 0],
        "toolagent": [0, 8704, 5632],
        "synthetic": [0, 512, 512],
    }
    assert cached_tokens(trace) == expected[name]


BAILIAN_IDS: list[list[int]] = [
    [*range(100, 133)],
    [*range(133, 173)],
    [*range(100, 132), *range(173, 198)],
    [*range(198, 218)],
    [*range(133, 173), *range(218, 247)],
]
BAILIAN: Rows = [
    {
        "chat_id": n,
        "parent_chat_id": parent,
        "timestamp": 2.0 * n,
        "input_length": prompt,
        "output_length": output,
        "type": "text",
        "turn": 1 if parent < 0 else 2,
    }
    for n, (parent, prompt, output) in enumerate(
        [(-1, 521, 132), (-1, 640, 100), (0, 900, 80), (-1, 320, 150), (1, 1100, 60)]
    )
]


@pytest.mark.parametrize("with_ids", [False, True])
def test_bailian_is_in_seconds_and_blocks_of_16(tmp_path: Path, with_ids: bool) -> None:
    """5 requests in 8 s; of 3,481 prompt tokens 512 + 640 were there before (case c01)."""
    rows = [
        {**row, "hash_ids": ids} if with_ids else row
        for row, ids in zip(BAILIAN, BAILIAN_IDS, strict=True)
    ]
    trace = read(tmp_path, rows)
    assert trace.format == "bailian"
    assert trace.rate_rps == 0.5
    assert trace.turns is None  # its stamps say when a turn came
    if with_ids:
        assert cached_tokens(trace) == [0, 0, 512, 0, 640]
        assert sum(cached_tokens(trace)) / trace.prompt_len.sum() == pytest.approx(1152 / 3481)
    else:
        assert trace.hashes is None


AZURE = {
    "azure-2023": "TIMESTAMP,ContextTokens,GeneratedTokens\n"
    "2023-11-16 18:15:46.6805900,374,44\n"
    "2023-11-16 18:15:50.9951690,396,109\n"
    "2023-11-16 18:15:51.2225670,879,55\n",
    "azure-2024": "TIMESTAMP,ContextTokens,GeneratedTokens\n"
    "2024-05-10 00:00:00.009930+00:00,2162,5\n"
    "2024-05-10 00:00:00.017335+00:00,2399,6\n"
    "2024-05-10 00:00:01+00:00,76,15\n",
    "azure-2025": "TIMESTAMP,NumImages,ContextTokens,GeneratedTokens\n"
    "2024-10-15 00:00:00.009930+00:00,3,2162,5\n"
    "2024-10-15 00:00:00.017335+00:00,0,2399,6\n"
    "2024-10-15 00:00:01+00:00,1,76,15\n",
}


@pytest.mark.parametrize("name", AZURE)
@pytest.mark.parametrize("delimiter", [",", ";"])
def test_azure_has_dates(tmp_path: Path, name: str, delimiter: str) -> None:
    """2.02 requests/s (case c19): two gaps in 0.99007 s; a week can cross a month."""
    trace = read(tmp_path, AZURE[name].replace(",", delimiter))
    assert trace.format == name
    span_s = 4.541977 if name == "azure-2023" else 0.99007
    assert trace.arrival_s is not None
    assert trace.arrival_s[-1] == pytest.approx(span_s, abs=1e-6)
    assert trace.rate_rps == pytest.approx(2 / span_s, rel=1e-6)


def test_images_are_said_not_to_be_simulated(tmp_path: Path) -> None:
    """3 + 0 + 1 of them."""
    trace = read(tmp_path, AZURE["azure-2025"])
    assert trace.notes == ("4 images (NumImages) of 2 requests are not simulated",)


BURSTGPT = """Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type
5,ChatGPT,472,18,490,Conversation log
45,ChatGPT,1087,230,1317,Conversation log
118,GPT-4,417,276,693,Conversation log
130,ChatGPT,300,0,300,API log
3000,ChatGPT,640,120,760,API log
5270000,ChatGPT,100,50,150,API log
"""
BURSTGPT_3 = (
    "Timestamp,Session ID,Elapsed time,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
    """19440110.0,1722ac82,43,GPT-4,906,446,1352,Conversation log
19440161.0,d5983bf9,2,ChatGPT,36,29,65,Conversation log
"""
)


def test_a_window_of_burstgpt_is_cut_before_its_61_days_are_judged(tmp_path: Path) -> None:
    """Four requests of the first hour; the one without an answer had failed (case c09)."""
    hour = workload_of(tmp_path, BURSTGPT, end_s=3600.0)
    assert hour.arrival_s.tolist() == [0, 40, 113, 2995]
    assert hour.prompt_len.tolist() == [472, 1087, 417, 640]
    assert any("1 of 5 rows have no prompt or no output tokens" in note for note in hour.notes)
    renamed = BURSTGPT.replace("Timestamp", "arrival_s").replace("Request tokens", "prompt_len")
    renamed = renamed.replace("Response tokens", "output_len").replace(
        "130,ChatGPT,300,0", "130,ChatGPT,300,1"
    )
    assert workload_of(tmp_path, renamed, end_s=3600.0).num_requests == 5
    few = WorkloadSettings(trace=TraceFile(path=str(written(tmp_path, BURSTGPT))), num_requests=3)
    assert build(few, seed=0, rate_rps=None, max_model_len=9999).num_requests == 3
    with pytest.raises(ConfigError, match=r"later than the 2097152 s \(24 days\).*window"):
        workload_of(tmp_path, BURSTGPT)
    newest = read(tmp_path, BURSTGPT_3)
    assert newest.format == "burstgpt"
    assert newest.arrival_s is not None
    assert newest.arrival_s.tolist() == [0, 51]


def test_rows_behind_a_window_are_not_read(tmp_path: Path) -> None:
    """Of sorted formats: an hour of a long file takes no longer than an hour's file."""
    rest = "".join(f"{10_000 + i},m,1,1,2,API log\n" for i in range(40_000)) + "oops\n"
    file = written(tmp_path, BURSTGPT.replace("5270000,ChatGPT,100,50,150,API log\n", "") + rest)
    assert len(read_trace(file, window_s=(0.0, 3600.0)).prompt_len) == 4
    with pytest.raises(DataError, match="line 40007: 1 cells"):
        read_trace(file)


def test_guidellm_is_in_seconds(tmp_path: Path) -> None:
    """The same keys as Mooncake's; also with ids, also as one JSON array; sorted when read."""
    rows: Rows = [
        {"timestamp": t, "input_length": 256 + i, "output_length": 128}
        for i, t in enumerate([0.0, 1.25, 0.5, 4.0])
    ]
    for content in (rows, json.dumps(rows, indent=1)):
        trace = read(tmp_path, content)
        assert trace.format == "guidellm"
        assert trace.arrival_s is not None
        assert trace.arrival_s.tolist() == [0, 0.5, 1.25, 4.0]
        assert trace.prompt_len.tolist() == [256, 258, 257, 259]
        assert any(
            "taken to be in s by their rate (750 requests/s in ms, 0.75" in n for n in trace.notes
        )
        assert "rows were sorted by their time" in trace.notes
    with_ids = [{**row, "hash_ids": [i]} for i, row in enumerate(rows)]
    assert read(tmp_path, with_ids).rate_rps == 0.75
    told = read(tmp_path, rows, format="guidellm")
    assert told.rate_rps == 0.75
    assert told.notes == ("rows were sorted by their time",)


def test_servegen_workloads_are_in_seconds(tmp_path: Path) -> None:
    """What save_requests_to_csv writes; further data columns are said to be unused."""
    text = "request_id,timestamp,input_tokens,output_tokens,image_tokens\n"
    text += "0,0.5,10,20,0\n1,1.2,15,25,9\n"
    trace = read(tmp_path, text)
    assert trace.format == "servegen"
    assert trace.arrival_s is not None
    assert trace.arrival_s.tolist() == pytest.approx([0, 0.7])
    assert trace.notes == ("not simulated: columns request_id, image_tokens",)


def test_llmservingsim_has_flat_rows_and_sessions_in_ns(tmp_path: Path) -> None:
    """A call waits for the answer before it and the tool; any order of the lines will do."""
    rows: Rows = [
        {
            "session_id": "s0",
            "arrival_time_ns": 1_000_000_000,
            "sub_requests": [
                {"input_toks": 200, "output_toks": 100, "tool_duration_ns": 127_000_000},
                {"input_toks": 333, "output_toks": 50, "tool_duration_ns": 0},
                {"input_toks": 400, "output_toks": 7},
            ],
        },
        {"input_toks": 100, "output_toks": 50, "arrival_time_ns": 500_000_000},
        {"input_toks": 150, "output_toks": 80, "arrival_time_ns": 2_000_000_000},
    ]
    trace = read(tmp_path, rows)
    assert trace.format == "llmservingsim"
    assert trace.prompt_len.tolist() == [100, 200, 333, 400, 150]
    assert trace.turns is not None
    assert trace.turns.after.tolist() == [-1, -1, 1, 2, -1]
    assert trace.turns.think_s.tolist() == pytest.approx([0, 0, 0.127, 0, 0])
    assert trace.clock_s.tolist() == pytest.approx([0, 0.5, 1.5])


def test_llmservingsim_token_ids_become_blocks(tmp_path: Path) -> None:
    """48 tokens of which 32 are those of the first prompt; a block of 16 must be alike whole."""
    first = [*range(40)]
    rows: Rows = [
        {"input_toks": 40, "output_toks": 4, "arrival_time_ns": 0, "input_tok_ids": first},
        {
            "input_toks": 48,
            "output_toks": 4,
            "arrival_time_ns": 10**9,
            "input_tok_ids": [*first[:33], *range(900, 915)],
        },
    ]
    trace = read(tmp_path, rows)
    assert cached_tokens(trace) == [0, 32]
    rows[1]["input_tok_ids"].pop()
    with pytest.raises(DataError, match="line 2, input_tok_ids: must be a list of 48"):
        read(tmp_path, rows)


@pytest.mark.parametrize("name", ["plain", "mooncake", "dates"])
def test_parquet_holds_any_format(tmp_path: Path, name: str) -> None:
    """Plain columns, Mooncake's with lists of ids, and typed time stamps."""
    columns: dict[str, Any] = {
        "plain": {"arrival_s": [0.5, 1.5, 4.5], "prompt_len": [5, 6, 7], "output_len": [1, 2, 3]},
        "mooncake": {
            "timestamp": [500, 1500, 4500],
            "input_length": [1024, 600, 7],
            "output_length": [1, 2, 3],
            "hash_ids": [[1, 2], [1, 3], []],
        },
        "dates": {
            "TIMESTAMP": np.array([500, 1500, 4500], "datetime64[ms]"),
            "ContextTokens": [5, 6, 7],
            "GeneratedTokens": [1, 2, 3],
        },
    }[name]
    file = tmp_path / "trace.parquet"
    pq.write_table(pa.table(columns), file)
    trace = read_trace(file)
    assert trace.format == {"plain": "csv", "mooncake": "mooncake", "dates": "azure-2023"}[name]
    assert trace.arrival_s is not None
    assert trace.arrival_s.tolist() == [0, 1, 4]
    assert trace.output_len.tolist() == [1, 2, 3]
    if name == "mooncake":
        assert cached_tokens(trace) == [0, 512, 0]


# Sessions that wait -----------------------------------------------------------------------------


def aiperf(*rows: tuple[Any, ...]) -> Rows:
    """Rows of (session, time, delay, prompt, output, ids)."""
    keys = ("session_id", "timestamp", "delay", "input_length", "output_length", "hash_ids")
    return [{k: v for k, v in zip(keys, row, strict=False) if v is not None} for row in rows]


def test_aiperf_turns_with_whole_prompts_wait_for_the_answer(tmp_path: Path) -> None:
    """The second turn comes 500 ms after the end of the first (case c19)."""
    ids = [*range(46, 58), 2353]
    trace = read(
        tmp_path,
        aiperf(("a", 0, None, 6955, 52, [*ids, 2354]), ("a", None, 500, 7100, 52, [*ids, 2355])),
    )
    assert trace.turns is not None
    assert trace.turns.after.tolist() == [-1, 0]
    assert trace.turns.think_s.tolist() == [0, 0.5]
    assert trace.prompt_len.tolist() == [6955, 7100]
    assert cached_tokens(trace) == [0, 13 * 512]
    assert any("hold their whole prompt (each begins with the blocks" in n for n in trace.notes)


def test_aiperf_turns_add_to_all_that_was_said(tmp_path: Path) -> None:
    """300 + 40 + 150 = 490 tokens, of which the cache has the 340 before in blocks of 16."""
    rows = aiperf(
        ("x", 1000, None, 300, 40),
        ("x", None, 2, 150, 20),
        ("y", 1500, None, 64, 8),
        ("x", None, 7, 10, 5),
    )
    trace = read(tmp_path, rows)
    assert trace.prompt_len.tolist() == [300, 490, 520, 64]
    assert trace.turns is not None
    assert trace.turns.after.tolist() == [-1, 0, 1, -1]
    assert trace.turns.think_s.tolist() == pytest.approx([0, 0.002, 0.007, 0])
    assert trace.clock_s.tolist() == [0, 0.5]
    assert cached_tokens(trace) == [0, 336, 496, 0]
    assert any("add to the turn before and its answer (as AIPerf replays" in n for n in trace.notes)
    assert read(tmp_path, rows, turns="whole").prompt_len.tolist() == [300, 150, 10, 64]


def test_a_prompt_that_sessions_share_is_shared_where_turns_add_up(tmp_path: Path) -> None:
    """Full blocks of the first prompts alone: 512 of 600 tokens, whatever stands behind them."""
    rows = aiperf(
        ("x", 0, None, 600, 424, [7, 8]),
        ("y", 1000, None, 600, 424, [7, 8]),
        ("x", None, 0, 100, 1, [9]),
        ("y", None, 0, 100, 1, [9]),
    )
    trace = read(tmp_path, rows)
    assert trace.prompt_len.tolist() == [600, 1124, 600, 1124]
    assert cached_tokens(trace) == [0, 1024, 512, 1024]


def test_a_later_turn_with_a_time_comes_no_earlier(tmp_path: Path) -> None:
    """Nor before the answer to the one before it."""
    rows = aiperf(("x", 1000, None, 100, 5), ("x", 9000, None, 50, 5), ("y", 2000, None, 64, 8))
    trace = read(tmp_path, rows)
    assert trace.arrival_s is not None
    assert trace.arrival_s.tolist() == [0, 8, 1]


def test_windows_and_cuts_take_whole_sessions(tmp_path: Path) -> None:
    """By their first turn; without waits what is left is an ordinary trace."""
    rows = aiperf(
        ("x", 0, None, 100, 5),
        ("y", 2000, None, 64, 8),
        ("x", 60_000, None, 50, 5),
        ("z", 7000, None, 9, 9),
    )
    file = written(tmp_path, rows)
    assert read_trace(file, window_s=(0.0, 3.0)).prompt_len.tolist() == [100, 155, 64]
    later = read_trace(file, window_s=(1.0, 9.0))
    assert later.prompt_len.tolist() == [64, 9]
    assert later.turns is None
    assert later.arrival_s is not None
    assert later.arrival_s.tolist() == [0, 5]
    loaded = build(
        WorkloadSettings(trace=str(file), duration_s=5.0), seed=0, rate_rps=None, max_model_len=999
    )
    assert loaded.prompt_len.tolist() == [100, 155, 64]
    with pytest.raises(DataError, match="no session begins in the window"):
        read_trace(file, window_s=(8.0, 9.0))
    with pytest.raises(ConfigError, match=r"turns of .* wait for answers"):
        build(WorkloadSettings(trace=str(file)), seed=0, rate_rps=3.0, max_model_len=999)


def test_sessions_that_cannot_be_understood_are_refused(tmp_path: Path) -> None:
    """No start, no length of an answer, a wait below 0, ids that contradict the lengths."""
    for rows, says in (
        (
            aiperf(("x", None, None, 100, 5), ("x", None, 3, 50, 5)),
            "line 1: the first turn .* no timestamp",
        ),
        (aiperf(("x", 0, None, 100, None), ("x", None, 3, 50, 5)), "line 1, output_length = None"),
        (
            aiperf(("x", 0, None, 100, 5), ("x", None, -3, 50, 5)),
            "line 2, delay = -3: must be 0 or more",
        ),
        (
            aiperf(("x", 0, None, 100, 5, [1]), ("x", None, 3, 500, 5, [2])),
            'not clear .* Set turns = "whole" or "added"',
        ),
    ):
        with pytest.raises(DataError, match=says):
            read(tmp_path, rows)


# Units, blocks and ids ---------------------------------------------------------------------------


def stamped(times: list[Any], **more: Any) -> Rows:
    """Rows with Mooncake's keys."""
    return [{"timestamp": t, "input_length": 600, "output_length": 5, **more} for t in times]


@pytest.mark.parametrize(
    ("times", "more", "rate_rps"),
    [
        ([0, 2, 4, 6, 8], {}, 0.5),  # 500/s in ms is none
        ([0, 2, 4, 6, 8], {"hash_ids": [1, 2]}, 0.5),
        ([0, 2000, 4000], {}, 0.5),  # one in 2000 s is none
        ([0, 0.7, 2.1], {}, 2 / 2.1),
        ([0, 20, 40], {"hash_ids": [1, 2]}, 50.0),  # either; as Mooncake publishes it
        ([1_700_000_000, 1_700_000_040], {}, 1 / 40),
        ([1_700_000_000_000, 1_700_000_040_000], {}, 1 / 40),
        ([1_700_000_000_000_000, 1_700_000_040_000_000], {}, 1 / 40),
        ([1_700_000_000_000_000_000, 1_700_000_040_000_000_000], {}, 1 / 40),
        ([5, 5, 5], {}, None),
    ],
)
def test_the_unit_of_ambiguous_stamps_is_proved_or_said(
    tmp_path: Path, times: list[Any], more: dict[str, Any], rate_rps: float | None
) -> None:
    """By the rate, by the digits of a date, by Mooncake's blocks; what it is taken for is said."""
    trace = read(tmp_path, stamped(times, **more))
    assert trace.rate_rps == pytest.approx(rate_rps)
    proved = times[0] == 1_700_000_000_000  # in ms it is a date, as these keys have it
    assert rate_rps is None or proved or any("times" in note for note in trace.notes)


@pytest.mark.parametrize("times", [[0, 20, 40], [0, 12.5, 30.25]])
def test_stamps_that_may_be_either_are_refused_until_told(tmp_path: Path, times: list[Any]) -> None:
    """50 requests/s or one in 20 s: both happen."""
    with pytest.raises(
        DataError, match=r"may be in ms .* or in s .*Set time_unit = \"ms\" or \"s\""
    ):
        read(tmp_path, stamped(times))
    span = times[-1]
    for unit, factor in (("s", 1.0), ("ms", 1e3), ("us", 1e6), ("ns", 1e9)):
        trace = read(tmp_path, stamped(times), time_unit=unit)
        assert trace.rate_rps == pytest.approx(2 * factor / span)
        assert trace.notes == ()
    assert read(tmp_path, stamped(times), format="guidellm").rate_rps == pytest.approx(2 / span)


def test_a_unit_that_the_column_contradicts_is_refused(tmp_path: Path) -> None:
    """arrival_s is in seconds; dates have no unit."""
    plain = "arrival_s,prompt_len,output_len\n0,1,1\n"
    with pytest.raises(DataError, match="arrival_s is in s, not in ms"):
        read(tmp_path, plain, time_unit="ms")
    with pytest.raises(DataError, match="TIMESTAMP is in date, not in s"):
        read(tmp_path, AZURE["azure-2023"], time_unit="s")


def test_an_unusual_rate_of_a_told_format_is_said(tmp_path: Path) -> None:
    """A trace in seconds that is said to be Mooncake's: 500 requests/s."""
    trace = read(tmp_path, stamped([0, 2, 4, 6, 8]), format="mooncake")
    assert trace.notes[-1] == "500 requests/s is an unusual rate: check format and time_unit"


def blocks(sizes: list[int], block_size: int, start: int = 0) -> Rows:
    """Prompts of these lengths with the ids of all their blocks, in seconds."""
    rows = []
    for i, size in enumerate(sizes):
        count = -(-size // block_size)
        rows.append(
            {
                "timestamp": 2.5 * i,
                "input_length": size,
                "output_length": 5,
                "hash_ids": [*range(start, start + count)],
            }
        )
    return rows


def test_the_block_size_is_proved_by_the_number_of_ids(tmp_path: Path) -> None:
    """Blocks of 16 in Mooncake's keys (GuideLLM's plan of tests has them): 16 alone fits."""
    trace = read(tmp_path, blocks([100, 300, 555], 16))
    assert trace.hashes is not None
    assert trace.hashes.tokens_per_id == 16
    assert cached_tokens(trace) == [0, 96, 288]
    assert any(
        "blocks of 16 tokens, which the number of hash_ids of every row fits" in n
        for n in trace.notes
    )
    other = read(tmp_path, blocks([100, 300, 555], 64))
    assert other.hashes is not None
    assert other.hashes.tokens_per_id == 64


def test_a_block_size_that_does_not_fit_the_ids_is_refused(tmp_path: Path) -> None:
    """Too small a one would find a thirtieth of what there is, without a word."""
    rows = blocks([5000, 9000], 512)
    with pytest.raises(DataError, match="not of blocks of 16 tokens: their number fits 512"):
        read(tmp_path, rows, block_size=16)
    odd = blocks([5000, 9000], 512)
    odd[1]["hash_ids"].append(77)
    with pytest.raises(DataError, match=r"line 2, hash_ids: 19 ids, but a prompt of 9000 tokens"):
        read(tmp_path, odd)
    with pytest.raises(DataError, match="how many tokens a block of hash_ids has is not known"):
        read(
            tmp_path,
            [{"arrival_s": 0.0, "prompt_len": 7, "output_len": 5, "hash_ids": [3]}],
        )
    plain = [{"arrival_s": 0.0, "prompt_len": 600, "output_len": 5, "hash_ids": [3, 4]}]
    assert read(tmp_path, plain, block_size=512).hashes is not None


def test_prompts_whose_ids_end_early_are_said(tmp_path: Path) -> None:
    """The rest of such a prompt is shared with nobody."""
    rows = blocks([5000, 9000], 512)
    del rows[1]["hash_ids"][4:]
    trace = read(tmp_path, rows)
    assert any(
        "1 of 2 prompts have ids for none or some of their full blocks" in n for n in trace.notes
    )


IDS = {
    "64 bits": [12345678901234567890, 12345678901234567891, 12345678901234567892],
    "signed": [-(2**63), -1, 2**63 - 1],
    "beyond": [10**30, 10**30 + 1, 2],
    "texts": ["9f86d081", "60303ae2", "fd61a03a"],
    "mixed": ["1", 1, 2**64 - 1],
}


@pytest.mark.parametrize("name", IDS)
def test_ids_of_any_kind_are_told_apart(tmp_path: Path, name: str) -> None:
    """512 of the 1,024 tokens of the second prompt are cached (case c19, u64)."""
    a, b, c = IDS[name]
    rows = [
        {"timestamp": 1000 * i, "input_length": 1024, "output_length": 4, "hash_ids": ids}
        for i, ids in enumerate([[a, b], [a, c], [a, b]])
    ]
    assert cached_tokens(read(tmp_path, rows)) == [0, 512, 1024]


def test_ids_need_no_fixed_predecessor(tmp_path: Path) -> None:
    """Hits of 0, 0 and 32 tokens: a prefix matches from its start (case c19, chain)."""
    rows = [
        {"arrival_s": i, "input_tokens": 48, "output_tokens": 4, "block16_ids": ids}
        for i, ids in enumerate([[0, 1, 2], [5, 1, 7], [0, 1, 9]])
    ]
    trace = read(tmp_path, rows)
    assert trace.format == "llmservingsim"
    assert cached_tokens(trace) == [0, 0, 32]


@given(st.lists(st.lists(st.integers(0, 4), max_size=6), min_size=1, max_size=12))
@settings(deadline=None)
def test_chained_ids_are_equal_exactly_for_equal_beginnings(rows: list[list[int]]) -> None:
    """Of all pairs of blocks, against the lists themselves; new ones of a row are consecutive."""
    flat = np.array([i for row in rows for i in row], np.int64)
    ends = np.cumsum([len(row) for row in rows])
    ids = chained(flat, ends).tolist()
    beginnings = [tuple(row[: k + 1]) for row in rows for k in range(len(row))]
    for i, one in enumerate(beginnings):
        for j, other in enumerate(beginnings):
            assert (ids[i] == ids[j]) == (one == other)
    met: dict[tuple[int, ...], int] = {}
    for one, number in zip(beginnings, ids, strict=True):
        assert number == met.setdefault(one, len(met))


@given(st.lists(st.lists(st.integers(0, 3), max_size=4), min_size=1, max_size=10), st.data())
@settings(deadline=None, max_examples=60)
def test_a_cache_finds_what_the_ids_of_a_trace_say(
    rows: list[list[int]], data: st.DataObject
) -> None:
    """The engine's own pool of blocks, request by request, finds the longest common beginning."""
    column = IdColumn()
    for row in rows:
        column.add([row])
    starts = np.concatenate([[0], column.ends])
    prompt_len = np.array([max(16 * len(row), 1) for row in rows])
    hashes = BlockHashes.of_ids(column.prefixes(), starts, prompt_len, 16)
    pool = PrefixPool(1000, 16)
    before: list[list[int]] = []
    for number, row in enumerate(rows):
        request = Request(number, 0.0, int(prompt_len[number]), 1)
        request.block_ids = hashes.runs(number, 16)
        expected = max((common(row, other) for other in before), default=0)
        assert pool.find(request, 16 * len(row) + 1)[0] == expected
        request.num_computed_tokens = 16 * len(row)
        pool.take(request, len(row), expected)
        pool.computed(request)
        pool.leave(request, len(row))
        before.append(row)


def common(one: list[int], other: list[int]) -> int:
    """Length of the common beginning."""
    count = 0
    for a, b in zip(one, other, strict=False):
        if a != b:
            break
        count += 1
    return count


@given(st.integers(0, 10), st.lists(st.integers(1, 5000), min_size=1, max_size=8))
def test_the_right_block_size_is_always_among_those_that_fit(
    power: int, lengths: list[int]
) -> None:
    """Whether the last block is counted or not."""
    size = 2**power
    prompt_len = np.array(lengths)
    for num_ids in (prompt_len // size, -(-prompt_len // size)):
        sizes = fitting_sizes(prompt_len, num_ids)
        assert size in sizes or not num_ids.any()


# What is no trace -------------------------------------------------------------------------------

SHAREGPT = [{"id": "x", "conversations": [{"from": "human", "value": "hello there"}]}]
VLLM_RESULT = {
    "date": "20260101-000000",
    "backend": "vllm",
    "num_prompts": 3,
    "duration": 3.0,
    "completed": 3,
    "total_input_tokens": 300,
    "request_throughput": 1.0,
    "input_lens": [100, 100, 100],
    "ttfts": [0.1, 0.1, 0.2],
}
OTHERS: dict[str, tuple[str, str]] = {
    "ShareGPT": (json.dumps(SHAREGPT), "is a file of ShareGPT conversations"),
    "ShareGPT, many lines": (json.dumps(SHAREGPT, indent=2), "is a file of ShareGPT conversations"),
    "ShareGPT, JSON lines": (json.dumps(SHAREGPT[0]) + "\n", "is a file of ShareGPT conversations"),
    "vLLM": (json.dumps(VLLM_RESULT), "is the result of a benchmark (vllm bench serve"),
    "vLLM, many lines": (json.dumps(VLLM_RESULT, indent=4), "is the result of a benchmark"),
    "GuideLLM report": (
        '{"metadata": {"version": 1}, "benchmarks": []}',
        "is the report of a GuideLLM",
    ),
    "AIPerf report": (
        '{"request_latency": {"avg": 1.0}, "input_config": {"model": "m"}}',
        "is the report of an AIPerf or GenAI-Perf run",
    ),
    "texts": ('{"prompt": "Why?", "timestamp": 3}\n', "is a file of texts (prompt)"),
    "OpenAI batch": (
        '{"custom_id": "1", "body": {"messages": []}}\n',
        "is a file of texts (body, messages)",
    ),
    "clients": ("client,mean_rate,cv_mean,pattern_mode\n", 'arrivals = { kind = "clients"'),
}


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("packed", [False, True])
def test_what_is_no_trace_is_refused_by_what_it_is(tmp_path: Path, name: str, packed: bool) -> None:
    """With what to do instead."""
    content, says = OTHERS[name]
    file = tmp_path / "it.json"
    file.write_bytes(gzip.compress(content.encode()) if packed else content.encode())
    with pytest.raises(DataError) as caught:
        read_trace(file)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_long_sharegpt_file_is_known_by_its_beginning(tmp_path: Path) -> None:
    """It is one line of 40 million characters, and is not parsed."""
    file = tmp_path / "long.json"
    with file.open("w") as out:
        out.write('[{"id": "x", "conversations": [{"from": "human", "value": "')
        for _ in range(40):
            out.write("a" * 1_000_000)
        out.write('"}]}]')
    with pytest.raises(DataError, match="ShareGPT"):
        read_trace(file)


def test_columns_that_are_not_read_are_named(tmp_path: Path) -> None:
    """Up to six of them."""
    header = "arrival_s,prompt_len,output_len," + ",".join(f"c{i}" for i in range(9))
    trace = read(tmp_path, header + "\n0,1,1" + ",x" * 9 + "\n")
    assert trace.notes == ("not simulated: columns c0, c1, c2, c3, c4, c5 and 3 more",)
    twice = "arrival_s,prompt_len,output_len,prompt_len\n0,1,1,2\n"
    with pytest.raises(DataError, match="column 'prompt_len' stands there twice"):
        read(tmp_path, twice)


# What is hardly a file --------------------------------------------------------------------------


def refused(path: Path | str, says: str) -> None:
    """One line, at once."""
    with pytest.raises(DataError) as caught:
        read_trace(Path(path))
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_pipes_and_devices_are_refused_and_not_waited_for(tmp_path: Path) -> None:
    """A pipe that nobody writes to would hang for ever, /dev/zero never ends."""
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", "/dev/full", "/dev/zero", "/dev/null"):
        refused(path, "no regular file but a pipe or a device")
    refused(tmp_path, "it is a folder")


def test_names_that_are_hard_to_write_are_refused_in_one_line(tmp_path: Path) -> None:
    """A NUL, bytes that are not UTF-8, a name longer than file systems take."""
    refused(f"{tmp_path}/a\0b", "cannot be read (")
    refused(os.fsdecode(os.fsencode(tmp_path) + b"/\xff\xfe.csv"), "no such file")
    refused(tmp_path / ("n" * 5000), "cannot be read (File name too long)")


def test_a_byte_order_mark_is_skipped(tmp_path: Path) -> None:
    """In CSV and in JSON lines."""
    for text in (
        "arrival_s,prompt_len,output_len\n0,3,4\n",
        '{"arrival_s": 0, "prompt_len": 3, "output_len": 4}',
    ):
        file = tmp_path / "bom"
        file.write_bytes(b"\xef\xbb\xbf" + text.encode())
        assert read_trace(file).prompt_len.tolist() == [3]
    file.write_bytes("arrival_s,prompt_len,output_len\n0,3,4\n".encode("utf-16"))
    refused(file, "not UTF-8 text")


def test_a_gzip_bomb_is_refused_at_its_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More than 30 times its size, once it has given so many characters; a plain file is not."""
    assert files.UNPACKED_FREE == 1 << 24  # 2.8 million of the rows below
    monkeypatch.setattr(files, "UNPACKED_FREE", 1 << 20)
    bomb = tmp_path / "bomb.csv.gz"
    text = b"arrival_s,prompt_len,output_len\n" + b"0,1,1\n" * 400_000
    bomb.write_bytes(gzip.compress(text, 9))
    assert len(text) > files.MAX_RATIO * bomb.stat().st_size
    refused(bomb, "unpacks to more than 30 times its size. If that is meant, unpack it")
    (tmp_path / "bomb.csv").write_bytes(text)
    assert len(read_trace(tmp_path / "bomb.csv").prompt_len) == 400_000


def test_a_file_without_line_ends_is_refused_at_its_limit(tmp_path: Path) -> None:
    """Of one line of zeros, or of one endless object."""
    for start in ("", '{"timestamp": '):
        refused(
            written(tmp_path, start + "0" * ((1 << 24) + (1 << 20))),
            "a line is longer than 16 million characters",
        )


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("[" * 100_000, "nested too deep"),
        ('{"timestamp": ' + "9" * 5000 + "}", "no JSON object"),
        ('{"timestamp": 0, "input_length": 1e999, "output_length": 1}', "input_length = inf"),
        ('{"timestamp": NaN, "input_length": 1, "output_length": 1}', "timestamp = nan"),
        (
            '{"timestamp": 0, "input_length": 1, "output_length": 1, "hash_ids": "x"}',
            "must be a list",
        ),
        (
            '{"timestamp": 0, "input_length": 1, "output_length": 1, "hash_ids": [1.5]}',
            "must be a list",
        ),
        (
            '{"timestamp": 0, "input_length": 1, "output_length": 1, "hash_ids": [true]}',
            "must be a list",
        ),
        (
            '{"timestamp": 0, "input_length": 1e300, "output_length": 1, "hash_ids": [1]}',
            "input_length = 1e+300: must be a whole number",
        ),
        (
            '{"timestamp": 0, "session_id": [1], "input_length": 1, "output_length": 1}',
            "session_id = [1]: must be a text or a whole number",
        ),
        (
            "arrival_s,prompt_len,output_len\n0,1,1\n1e300,1,1\n",
            "arrival_s = '1e300': must be within 4e+09 s",
        ),
        ('{"arrival_time_ns": 0, "sub_requests": 3}', "must be a list of objects"),
        ('{"arrival_time_ns": 0, "sub_requests": [3]}', "must be a list of objects"),
        ("PAR1 and nothing else", "no Parquet that can be read"),
        ("arrival_s,prompt_len,output_len\n0,1,1\n\0\0\0\n", "1 cells"),
        ("x" * 200_000, "no CSV (field larger than field limit"),
    ],
)
def test_broken_content_is_refused_in_one_line(tmp_path: Path, content: str, says: str) -> None:
    """No traceback, and no line that fills the screen."""
    file = written(tmp_path, content)
    refused(file, says)
    with pytest.raises(DataError) as caught:
        read_trace(file)
    assert len(str(caught.value)) < 400 + len(str(file))


def test_times_closer_than_the_time_grid_are_all_at_once(tmp_path: Path) -> None:
    """1e-320 s apart: no rate, of which some quotient would be infinite."""
    rows = [{"timestamp": t, "input_length": 9, "output_length": 1} for t in (0, 1e-320)]
    assert read(tmp_path, rows).rate_rps is None
