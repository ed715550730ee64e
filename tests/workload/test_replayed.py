"""Whole runs of traces and closed loops whose results a person can count.

Rows are recreated in the published formats; what is right is arithmetic on them, the format's
specification, or Little's law.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import simcluster
from simcluster.scenario.scenario import Scenario

Rows = list[dict[str, Any]]


def scenario(workload: dict[str, Any], folder: Path, **tables: Any) -> Scenario:
    """An H100 with an 8B model and these requests."""
    document: dict[str, Any] = {
        "model": {"name": "llama-3.1-8b"},
        "cluster": {"gpu": "H100", "gpus_per_node": 1},
        "engine": {"profile": "vllm-0.19", "prefix_caching": True},
        "workload": workload,
        "strategy": [{"name": "m", "kind": "nodg"}],
    }
    return simcluster.resolve({**document, **tables}, folder=folder)


def replayed(folder: Path, rows: Rows | str, **tables: Any) -> simcluster.Result:
    """The run of a trace."""
    text = rows if isinstance(rows, str) else "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "trace").write_text(text, encoding="utf-8")
    return simcluster.simulate(scenario({"trace": "trace"}, folder, **tables))


def mooncake(timestamp: float, prompt: int, output: int, ids: list[int]) -> dict[str, Any]:
    """A row of Mooncake's."""
    keys = ("timestamp", "input_length", "output_length", "hash_ids")
    return dict(zip(keys, (timestamp, prompt, output, ids), strict=True))


def bailian(number: int, prompt: int, ids: list[int]) -> dict[str, Any]:
    """A row of Bailian's: one request every two seconds."""
    marks = {"chat_id": number, "parent_chat_id": -1, "type": "text", "turn": 1}
    return marks | mooncake(2.0 * number, prompt, 100, ids)


BAILIAN = [
    bailian(0, 521, [*range(100, 133)]),
    bailian(1, 640, [*range(133, 173)]),
    bailian(2, 900, [*range(100, 132), *range(173, 198)]),
    bailian(3, 320, [*range(198, 218)]),
    bailian(4, 1100, [*range(133, 173), *range(218, 247)]),
]


@pytest.mark.parametrize("with_ids", [False, True])
def test_bailian_seconds_are_seconds(tmp_path: Path, with_ids: bool) -> None:
    """Five requests in 8 s are 0.5 requests/s; 32 and 40 blocks of 16 tokens are found again."""
    rows = BAILIAN if with_ids else [r | {"hash_ids": None} for r in BAILIAN]
    rows = [{k: v for k, v in row.items() if v is not None} for row in rows]
    result = replayed(tmp_path, rows)
    assert result.rate_rps == 0.5
    assert result.requests["arrival_s"].tolist() == [0, 2, 4, 6, 8]
    found = [0, 0, 32 * 16, 0, 40 * 16] if with_ids else [0] * 5
    assert result.requests["num_cached_tokens"].tolist() == found


def test_an_hour_of_burstgpt_has_the_requests_of_that_hour(tmp_path: Path) -> None:
    """Four, of 61 days, and one that failed; the clock of the run stands for the hour alone."""
    (tmp_path / "trace").write_text(
        "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
        "5,ChatGPT,472,18,490,Conversation log\n45,ChatGPT,1087,230,1317,Conversation log\n"
        "60,GPT-4,300,0,300,Conversation log\n118,GPT-4,417,276,693,Conversation log\n"
        "3000,ChatGPT,640,120,760,API log\n5270000,ChatGPT,100,50,150,API log\n",
        encoding="utf-8",
    )
    hour = scenario({"trace": {"path": "trace", "start_s": 0, "end_s": 3600}}, tmp_path)
    result = simcluster.simulate(hour)
    assert result.requests["arrival_s"].tolist() == [0, 40, 113, 2995]
    assert result.requests["prompt_len"].tolist() == [472, 1087, 417, 640]
    assert any("1 of 5 rows" in note for note in hour.workload.notes())


def test_azure_dates_are_seconds_apart(tmp_path: Path) -> None:
    """Two gaps in 0.99007 s: 2.02 requests/s; the images of the rows are named."""
    rows = (
        "TIMESTAMP,NumImages,ContextTokens,GeneratedTokens\n"
        "2024-10-15 00:00:00.009930+00:00,3,2162,5\n"
        "2024-10-15 00:00:00.017335+00:00,0,2399,6\n2024-10-15 00:00:01+00:00,1,76,15\n"
    )
    result = replayed(tmp_path, rows)
    assert result.rate_rps == pytest.approx(2 / 0.99007)
    notes = scenario({"trace": "trace"}, tmp_path).workload.notes()
    assert "4 images (NumImages) of 2 requests are not simulated" in notes


def test_ids_of_64_bits_are_told_apart(tmp_path: Path) -> None:
    """They differ in their last digits, which float64 cannot hold: one block of 512 is shared."""
    big = 12345678901234567890
    rows = [mooncake(0, 1024, 4, [big, big + 1]), mooncake(1000, 1024, 4, [big, big + 2])]
    found = replayed(tmp_path, rows).requests["num_cached_tokens"]
    assert found.tolist() == [0, 512]


def test_prefixes_match_from_the_start(tmp_path: Path) -> None:
    """Block 1 behind another beginning is no hit; behind the same one it is: 0, 0, 32 tokens."""
    rows = [
        {"arrival_s": t, "input_tokens": 48, "output_tokens": 4, "block16_ids": ids}
        for t, ids in enumerate([[0, 1, 2], [5, 1, 7], [0, 1, 9]])
    ]
    found = replayed(tmp_path, rows).requests["num_cached_tokens"]
    assert found.tolist() == [0, 0, 32]


@pytest.fixture(scope="module")
def mean_ttft_s(tmp_path_factory: pytest.TempPathFactory) -> dict[float, float]:
    """Mean TTFT of 16 prompts of 8,192 tokens that come at once, by the share in the cache.

    Two whole prompts fill a step of 16,384 tokens, so k = 8 steps without a cache.
    """
    means = {}
    for share in (0.0, 0.25, 0.5, 0.75):
        cached = int(16 * share)
        first = [mooncake(0, 512 * max(cached, 1), 1, [*range(cached)] or [10**6])]
        own = (range(1000 + 16 * n, 1016 + 16 * n - cached) for n in range(16))
        rows = first + [mooncake(60_000, 8192, 1, [*range(cached), *ids]) for ids in own]
        result = replayed(
            tmp_path_factory.mktemp("hit"),
            rows,
            engine={"profile": "ideal", "max_model_len": 16384, "prefix_caching": True},
            strategy=[{"name": "m", "kind": "nodg", "max_num_batched_tokens": 16384}],
        )
        requests = result.requests.iloc[1:]
        assert (requests["num_cached_tokens"] == 512 * cached).all()
        prompts_a_step = int(16384 / (8192 * (1 - share)))
        assert requests["first_token_s"].nunique() == 16 / prompts_a_step
        means[share] = float((requests["first_token_s"] - requests["arrival_s"]).mean())
    return means


@pytest.mark.parametrize("share", [0.25, 0.5, 0.75])
def test_ttft_falls_with_what_is_cached(mean_ttft_s: dict[float, float], share: float) -> None:
    """By k r / (k + 1) for a step as long as its tokens are many (vllm-project/vllm-ascend#7468).

    A little less, as attention still reads the cached part: a token of a prompt whose first r are
    cached sees (1 + r) times as many others, and attention is less than a fifth of the work here.
    """
    fall = 1 - mean_ttft_s[share] / mean_ttft_s[0.0]
    most = 8 * share / 9
    least = 1 - (1 - most) * (1 + share / 5)
    assert least < fall < most


def closed_loop(tmp_path: Path, output_len: int, profile: str = "vllm-0.19") -> simcluster.Result:
    """32 users with prompts of 3,100 tokens, ten requests each."""
    workload = {
        "lengths": {"kind": "fixed", "prompt_len": 3100, "output_len": output_len},
        "arrivals": {"kind": "closed-loop", "concurrency": 32},
        "num_requests": 320,
    }
    # Two prompts fill a step of 8,192 tokens, as in the published runs.
    engine = {"max_model_len": 8192, "profile": profile}
    return simcluster.simulate(scenario(workload, tmp_path, engine=engine))


def test_a_closed_loop_of_prompts_alone_waits_for_all_others(tmp_path: Path) -> None:
    """Each of 32 users waits for 32 prompts; with answers, for those of their batch: 17/32 of it.

    Steps of two prompts come first, then all decode together, so the 32 are in step: user n of the
    pairs 1 to 16 waits n steps, 8.5 on average, of two prompts each. So it is where prompts go
    first; an engine that decodes beside prompts keeps its users out of step.
    """
    alone = closed_loop(tmp_path, 1, "vllm-0.7").requests
    together = closed_loop(tmp_path, 2, "vllm-0.7").requests
    ttft_1 = np.median(alone["first_token_s"] - alone["arrival_s"])
    ttft_2 = (together["first_token_s"] - together["arrival_s"]).mean()
    assert ttft_2 / ttft_1 == pytest.approx(17 / 32, rel=0.02)


def test_an_engine_that_decodes_beside_prompts_leaves_a_closed_loop_out_of_step(
    tmp_path: Path,
) -> None:
    """Of the same 32 users each waits for all but those of its own step: 1 - 2.64 / 32.

    A step of 8,192 tokens holds 2.64 prompts of 3,100. Who gets the first token in one step gets
    the second and last in the next, and the next prompt of this user stands behind all others. By
    Little's law TTFT + a step is 32 / throughput, and the throughput is that of prompts alone.
    """
    alone = closed_loop(tmp_path, 1).requests
    together = closed_loop(tmp_path, 2).requests
    ttft_1 = np.median(alone["first_token_s"] - alone["arrival_s"])
    ttft_2 = np.median(together["first_token_s"] - together["arrival_s"])
    assert ttft_2 / ttft_1 == pytest.approx(1 - 8192 / 3100 / 32, rel=0.01)


@pytest.mark.parametrize("output_len", [1, 2, 64])
def test_a_closed_loop_keeps_littles_law(tmp_path: Path, output_len: int) -> None:
    """Requests in the system over the whole run: throughput times end-to-end latency, exactly.

    32 but for the start and the end, where the users leave one by one: at most one round in ten.
    """
    result = closed_loop(tmp_path, output_len)
    requests = result.requests
    e2el_s = requests["last_output_s"] - requests["arrival_s"]
    in_system = len(requests) / result.end_s * e2el_s.mean()
    assert 32 * 0.9 < in_system <= 32
    joins = [(t, 1) for t in requests["arrival_s"]] + [(t, -1) for t in requests["last_output_s"]]
    most = int(np.cumsum([step for _, step in sorted(joins)]).max())
    assert most == 32


def test_a_second_turn_starts_half_a_second_after_the_answer(tmp_path: Path) -> None:
    """AIPerf's delay counts in ms from the end of the answer; 13 blocks of 512 are found again."""
    ids = [*range(46, 58), 2353]
    turns: Rows = [
        {"session_id": "a", "timestamp": 0, "hash_ids": [*ids, 2354]},
        {"session_id": "a", "delay": 500, "hash_ids": [*ids, 2355]},
    ]
    rows = [
        t | {"input_length": n, "output_length": 52}
        for t, n in zip(turns, (6955, 7100), strict=True)
    ]
    requests = replayed(tmp_path, rows).requests
    assert requests["arrival_s"][1] == requests["last_output_s"][0] + 0.5
    assert requests["num_cached_tokens"].tolist() == [0, 13 * 512]
