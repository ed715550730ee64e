"""Turns that wait for answers: when they arrive, in runs of every kind of strategy."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from simcluster.cli import main
from simcluster.runs.simulate import Result, run
from simcluster.strategies import FuDG, NoDG, PaDG
from simcluster.testing.laws import check_laws
from simcluster.testing.specs import vllm_engine
from simcluster.testing.toy import STRICT, assert_same, toy_environment, toy_workload
from simcluster.units import grid_array
from simcluster.workload import Workload
from simcluster.workload.turns import Turns

STRATEGIES: list[Any] = [
    NoDG(name="one", instances=1),
    NoDG(name="tight", instances=2, num_kv_blocks=13),
    FuDG(name="handover", prefill_instances=1, decode_instances=2),
    PaDG(name="held", instances=2),
]


def sessions(num: int = 8, *, seed: int = 3) -> Workload:
    """Sessions of four turns each; a request's row is its prompt length less one."""
    rng = np.random.default_rng(seed)
    count = 4 * num
    first = np.arange(count) % 4 == 0
    begins = np.sort(rng.uniform(0, 0.05, num))
    later = np.where(rng.random(count) < 0.2, rng.uniform(0, 0.3, count), 0.0)
    return Workload(
        arrival_s=grid_array(np.where(first, np.repeat(begins, 4), later)),
        prompt_len=np.arange(1, count + 1),
        output_len=rng.integers(1, 30, count),
        rejected=np.zeros(count, bool),
        turns=Turns(
            after=np.where(first, -1, np.arange(count) - 1),
            think_s=grid_array(np.where(first, 0.0, rng.choice([0.0, 0.001, 0.02], count))),
        ),
    )


def by_row(result: Result, name: str) -> np.ndarray[Any, Any]:
    """A column of the requests frame in the order of the workload."""
    columns = result.columns["requests"]
    return columns[name][np.argsort(columns["prompt_len"])]


@pytest.mark.parametrize("strategy", STRATEGIES, ids=lambda s: s.name)
def test_a_turn_arrives_after_the_answer_and_the_pause(strategy: Any) -> None:
    """Exactly: end of the answer that its user sees, plus the pause, and not before its time."""
    load = sessions()
    assert load.turns is not None
    result = run(toy_environment(vllm_engine(), STRICT), strategy, load)
    arrival_s, end_s = by_row(result, "arrival_s"), by_row(result, "last_output_s")
    after, waits = load.turns.after, load.turns.after >= 0
    expected = np.where(waits, end_s[after] + load.turns.think_s, 0.0)
    np.testing.assert_array_equal(arrival_s, np.maximum(expected, load.arrival_s))
    assert (np.diff(result.columns["requests"]["arrival_s"]) >= 0).all()
    assert (result.columns["requests"]["status"] == "finished").all()
    check_laws(result)


@pytest.mark.parametrize("strategy", STRATEGIES, ids=lambda s: s.name)
def test_all_resolutions_agree_on_sessions(strategy: Any) -> None:
    """Bit for bit; `tests/engine/test_resolutions.py` draws others."""
    where = toy_environment(vllm_engine(), STRICT)
    load = sessions(3)
    span, step, kernel = (
        run(where, strategy, load, resolution=r) for r in ("span", "step", "kernel")
    )
    assert_same(span, step)
    assert_same(step, kernel)


def test_a_session_alone_takes_its_answers_and_its_pauses() -> None:
    """Nobody else is there: the sum of end-to-end latencies and pauses, to the bit."""
    load = toy_workload([(0.0, 20, 10), (0.0, 30, 5), (0.0, 9, 1)], turns=[-1.0, 0.25, 0.5])
    result = run(toy_environment(vllm_engine()), NoDG(name="s", instances=1), load)
    requests = result.columns["requests"]
    assert result.end_s == requests["e2el_s"].sum() + 0.75


def test_a_rejected_turn_is_followed_by_the_next() -> None:
    """Its user is told at once, thinks, and asks on."""
    load = toy_workload([(0.0, 20, 10), (0.0, 30, 5), (0.0, 9, 1)], turns=[-1.0, 0.25, 0.5])
    rejected = Workload(
        arrival_s=load.arrival_s,
        prompt_len=load.prompt_len,
        output_len=load.output_len,
        rejected=np.array([False, True, False]),
        turns=load.turns,
    )
    result = run(toy_environment(vllm_engine()), NoDG(name="s", instances=1), rejected)
    requests = result.columns["requests"]
    assert requests["status"].tolist() == ["finished", "rejected", "finished"]
    assert requests["arrival_s"][2] == requests["arrival_s"][1] + 0.5


def test_turns_whose_answer_never_came_have_not_arrived() -> None:
    """The clock stops in the second turn of two: the third is in no frame."""
    load = toy_workload([(0.0, 20, 30), (0.0, 30, 30), (0.0, 9, 1)], turns=[-1.0, 0.0, 0.0])
    where, strategy = toy_environment(vllm_engine()), NoDG(name="s", instances=1)
    whole = run(where, strategy, load).columns["requests"]
    stop_s = float(whole["first_token_s"][1]) + 0.001
    cut = run(where, strategy, load, max_time_s=stop_s).columns["requests"]
    assert cut["status"].tolist() == ["finished", "unfinished"]


def test_turns_at_the_same_time_enter_in_the_order_of_the_workload() -> None:
    """Whoever was answered first: ties have a rule."""
    load = toy_workload([(0.0, 5, 3), (0.0, 6, 3), (0.0, 7, 9), (0.0, 8, 9)])
    after = np.array([-1, -1, 1, 0])
    ties = Workload(
        arrival_s=np.array([0.0, 0.0, 1.0, 1.0]),
        prompt_len=load.prompt_len,
        output_len=load.output_len,
        rejected=load.rejected,
        turns=Turns(after=after, think_s=np.zeros(4)),
    )
    result = run(toy_environment(vllm_engine()), NoDG(name="s", instances=1), ties)
    assert result.columns["requests"]["arrival_s"].tolist() == [0, 0, 1, 1]
    assert result.columns["requests"]["prompt_len"].tolist() == [5, 6, 7, 8]


def test_a_multi_turn_trace_runs_from_its_file(tmp_path: Path) -> None:
    """AIPerf's delay of 500 ms: the second turn starts half a second after the first has ended."""
    (tmp_path / "chat.jsonl").write_text(
        '{"session_id": "a", "timestamp": 0, "input_length": 700, "output_length": 52}\n'
        '{"session_id": "a", "delay": 500, "input_length": 100, "output_length": 52}\n'
    )
    (tmp_path / "s.toml").write_text(
        '[model]\nname = "llama-3.1-8b"\n[cluster]\ngpu = "H100"\ngpus_per_node = 1\n'
        "[engine]\nprefix_caching = true\n"
        '[workload]\ntrace = "chat.jsonl"\n[[strategy]]\nname = "m"\nkind = "nodg"\n'
    )
    out = ["-o", str(tmp_path / "out"), "--format", "csv", "--json"]
    called = CliRunner().invoke(main, ["run", str(tmp_path / "s.toml"), *out])
    assert called.exit_code == 0, called.output
    data = json.loads(called.stdout)
    assert data["rows"][0]["rate_rps"] is None
    # 752 tokens of the first turn are in the cache, of 1552 that were asked: full blocks of 16
    assert data["rows"][0]["cached_token_share"] == pytest.approx(736 / 1552)
    assert (
        data["notes"][0]
        == "chat.jsonl: aiperf, times in ms, blocks of 16 tokens; 2 requests in 1 session"
    )
    rows = (tmp_path / "out" / "requests.csv").read_text().splitlines()
    head = rows[0].split(",")
    first, second = (dict(zip(head, row.split(","), strict=True)) for row in rows[1:])
    pause_s = float(second["arrival_s"]) - float(first["last_output_s"])
    assert pause_s == pytest.approx(0.5, abs=1e-9)


def test_classes_stay_with_their_requests() -> None:
    """Turns enter in another order than they stand in: the frame has the class of each."""
    load = sessions()
    names = np.array(["even", "odd"], dtype=object)[np.arange(load.num_requests) % 2]
    classed = dataclasses.replace(load, slo_class=names)
    result = run(toy_environment(vllm_engine(), STRICT), STRATEGIES[0], classed)
    requests = result.columns["requests"]
    assert (np.diff(requests["prompt_len"]) != 1).any()
    # The prompt of row n has n + 1 tokens.
    assert requests["slo_class"].tolist() == [names[n - 1] for n in requests["prompt_len"]]
