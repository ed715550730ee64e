"""KV connectors inside the steps: the steps of both sides wait for the KV."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simcluster.config import Environment, SloConfig
from simcluster.errors import ConfigError
from simcluster.frames import unroll
from simcluster.runs.result import Result
from simcluster.runs.simulate import run
from simcluster.strategies import FuDG
from simcluster.testing.laws import check_laws
from simcluster.testing.specs import ideal_engine, vllm_engine
from simcluster.testing.step_times import LinearStepTime, same_for_all
from simcluster.testing.toy import TOY, assert_same, toy_environment, toy_workload
from simcluster.testing.workloads import workload_of
from simcluster.units import TICK_S, TICKS_PER_S, on_grid

LINK = toy_environment(ideal_engine(), SloConfig()).cluster.fabric
TOKEN_S, STEP_S = on_grid(1e-4), on_grid(0.01)
KV_BYTES = TOY.kv_bytes_per_token
TIMES = same_for_all(LinearStepTime(TOKEN_S, STEP_S))
PUT, GET, POLL_S = 1e6, 5e5, on_grid(2e-3)


def machines(**engine: Any) -> Environment:
    """Toy machines whose engine puts 1 MB/s and gets 0.5 MB/s inside its steps."""
    given = {
        "kv_connector": "inside",
        "kv_put_bytes_per_s": PUT,
        "kv_get_bytes_per_s": GET,
        "kv_poll_s": POLL_S,
        **engine,
    }
    return toy_environment(dataclasses.replace(ideal_engine(), **given), SloConfig())


def got_s(num_tokens: int, poll_s: float = POLL_S) -> float:
    """What a step waits for the KV of a prompt: a poll, the way out of the GPU, the link."""
    num_bytes = num_tokens * KV_BYTES
    link_s = math.ceil(num_bytes / (LINK.bandwidth * LINK.efficiency) * TICKS_PER_S) * TICK_S
    return poll_s + on_grid(num_bytes / GET) + on_grid(LINK.latency_s) + link_s


def served(where: Environment, arrivals: list[float], prompt: Any, output: Any) -> Result:
    """One prefill and one decode instance; a step takes 0.1 ms a prefill token, 10 ms a decode."""
    strategy = FuDG(name="s", prefill_instances=1, decode_instances=1)
    load = workload_of(arrivals, prompt, output)
    span, step = (
        run(where, strategy, load, step_time=TIMES, resolution=resolution)
        for resolution in ("span", "step")
    )
    assert_same(span, step)
    return span


def test_a_lone_request_waits_for_the_put_and_for_the_get() -> None:
    """Prefill, put, poll, get, decode: one after the other, before a user sees a token."""
    result = served(machines(handover_s=0.5), [0.0], 80, 20)
    row = {name: column[0] for name, column in result.columns["requests"].items()}
    assert row["first_token_s"] == 80 * TOKEN_S + on_grid(80 * KV_BYTES / PUT)
    assert row["first_output_s"] == row["first_token_s"] + 0.5 + got_s(80)
    assert row["decode_start_s"] == row["first_output_s"]
    assert row["last_token_s"] == row["decode_start_s"] + 19 * STEP_S
    transfers = result.columns["transfers"]
    assert transfers["num_bytes"].tolist() == [80 * KV_BYTES]
    assert transfers["end_s"].tolist() == [row["decode_start_s"]]


def test_the_whole_batch_stands_still_while_a_step_gets_kv() -> None:
    """One gap of the request that decodes already is longer by the get of the newcomer."""
    result = served(machines(), [0.0, 0.5], [8, 80], [140, 5])
    log = unroll.steps(result.columns, machines(), step_time=TIMES)
    gaps = np.diff(unroll.token_times(result.columns, log)[0])[1:]
    assert np.sort(gaps)[-1] == STEP_S + got_s(80)
    assert (np.sort(gaps)[:-1] == STEP_S).all()


def test_a_full_buffer_stops_the_prefill_instance() -> None:
    """Room for one prompt: the second is put when the decode side has got the first."""
    few = machines(kv_buffer_bytes=float(100 * KV_BYTES), kv_poll_s=0.0)
    result = served(few, [0.0, 0.001], 80, 20)
    requests, transfers = result.columns["requests"], result.columns["transfers"]
    put_s = on_grid(80 * KV_BYTES / PUT)
    one, two = requests["first_token_s"].tolist()
    assert one == 80 * TOKEN_S + put_s
    assert transfers["end_s"][0] == one + got_s(80, poll_s=0.0) > one + 80 * TOKEN_S
    assert two == transfers["end_s"][0] + put_s


def test_a_side_without_a_rate_takes_no_time_of_its_own() -> None:
    """The prefill worker goes on at once, and the links alone decide how long a step waits."""
    where = machines(kv_put_bytes_per_s=None, kv_get_bytes_per_s=None, kv_poll_s=0.0)
    result = served(where, [0.0], 80, 20)
    row = {name: column[0] for name, column in result.columns["requests"].items()}
    assert row["first_token_s"] == 80 * TOKEN_S
    link_s = got_s(80, 0.0) - on_grid(80 * KV_BYTES / GET)
    assert 0.0 < row["first_output_s"] - row["first_token_s"] - link_s <= TICK_S


@pytest.mark.parametrize("between_steps", [True, False])
@pytest.mark.parametrize("left", [0.0, 1 / 3])
def test_kv_leaves_between_the_steps_of_the_prefill_instance(
    between_steps: bool, left: float
) -> None:
    """A prompt that comes before or while KV is asked for is prefilled first, and the KV waits."""
    where = machines(kv_put_bytes_per_s=None, kv_poll_s=0.0, kv_between_steps=between_steps)
    # The second prompt comes when this share of the first one's KV has left.
    second_s = on_grid(80 * TOKEN_S + left * on_grid(80 * KV_BYTES / GET))
    result = served(where, [0.0, second_s], [80, 500], [20, 1])
    first_output = result.columns["requests"]["first_output_s"]
    assert first_output[1] == second_s + 500 * TOKEN_S
    paused_s = 500 * TOKEN_S if between_steps else 0.0
    assert first_output[0] == 80 * TOKEN_S + got_s(80, 0.0) + paused_s


def test_a_prefill_instance_sends_one_prompt_after_the_other() -> None:
    """Two decode instances ask at once: the second waits until the first has its KV."""
    where = machines(kv_put_bytes_per_s=None, kv_poll_s=0.0)
    strategy = FuDG(name="s", prefill_instances=1, decode_instances=2)
    result = run(where, strategy, workload_of([0.0, 0.0], 80, 20), step_time=TIMES)
    requests = result.columns["requests"]
    assert sorted(requests["decode_instance"].tolist()) == [1, 2]
    waits = np.sort(requests["first_output_s"] - requests["first_token_s"])
    np.testing.assert_allclose(waits, [got_s(80, 0.0), 2 * got_s(80, 0.0)], atol=2 * TICK_S)


@settings(max_examples=150, deadline=None)
@given(
    requests=st.lists(
        st.tuples(st.floats(0.0, 0.03), st.integers(1, 100), st.integers(1, 60)),
        min_size=1,
        max_size=20,
    ),
    decode_instances=st.integers(1, 2),
    buffer=st.sampled_from([None, 60, 300]),
    num_kv_blocks=st.sampled_from([None, 12, 24]),
    ahead=st.booleans(),
    between=st.booleans(),
    handover_s=st.sampled_from([0.0, 3e-3]),
    scheduler_seqs=st.sampled_from([1, 3, 64]),
)
def test_laws_hold_and_resolutions_agree(
    requests: list[tuple[float, int, int]],
    decode_instances: int,
    buffer: int | None,
    num_kv_blocks: int | None,
    ahead: bool,
    between: bool,
    handover_s: float,
    scheduler_seqs: int,
) -> None:
    """Small pools, small buffers, one sequence at a time; also beside plans made ahead."""
    engine = dataclasses.replace(
        vllm_engine(),
        kv_connector="inside",
        kv_put_bytes_per_s=2e7,
        kv_get_bytes_per_s=1e7,
        kv_buffer_bytes=None if buffer is None else float(buffer * KV_BYTES),
        plans_ahead=ahead,
        kv_between_steps=between,
        handover_s=handover_s,
    )
    strategy = FuDG(
        name="s",
        prefill_instances=2,
        decode_instances=decode_instances,
        placement="inter-node",
        pool="none",
        num_kv_blocks=num_kv_blocks,
        max_num_seqs=scheduler_seqs,
    )
    where, load = toy_environment(engine, SloConfig()), toy_workload(requests)
    span = run(where, strategy, load)
    check_laws(span)
    assert_same(span, run(where, strategy, load, resolution="step"))
    if len(requests) <= 4:
        assert_same(span, run(where, strategy, load, resolution="kernel"))


@pytest.mark.parametrize(
    ("settings_", "key"),
    [
        ({"transfer": "layerwise"}, "transfer"),
        ({"pp_size": 2}, "pp_size"),
        ({"placement": "inter-node", "pool": "decode-node"}, "pool"),
        ({"waiting_block_share": 0.1}, "waiting_block_share"),
    ],
)
def test_what_moves_kv_beside_the_steps_is_refused(settings_: dict[str, Any], key: str) -> None:
    """A connector inside the steps moves whole prompts, without links or a pool."""
    strategy = FuDG(name="s", prefill_instances=1, decode_instances=1, **settings_)
    with pytest.raises(ConfigError, match=f"strategy.s.{key} = .*inside the steps"):
        run(machines(), strategy, toy_workload([(0.0, 8, 8)]))


def test_gets_between_steps_without_a_rate_are_refused() -> None:
    """Nothing would wait for the steps."""
    where = machines(kv_get_bytes_per_s=None, kv_between_steps=True)
    strategy = FuDG(name="s", prefill_instances=1, decode_instances=1)
    with pytest.raises(ConfigError, match="needs the rate at which KV leaves a prefill instance"):
        run(where, strategy, toy_workload([(0.0, 8, 8)]))
