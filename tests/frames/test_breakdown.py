"""Parts of a latency: by hand, and adding up to the latency for every strategy."""

from __future__ import annotations

import numpy as np
import pytest

from helpers.scenarios import small_scenario
from simcluster.frames.breakdown import E2E_PARTS, TTFT_PARTS, e2e_parts, mean_parts, ttft_parts
from simcluster.frames.metrics import request_metrics
from simcluster.runs.simulate import simulate
from simcluster.scenario.file import resolve

STAMPS = {
    "arrival_s": [1.0, 1.0],
    "routed_s": [1.5, 1.0],
    "scheduled_s": [3.0, 1.0],
    "first_token_s": [7.0, 2.0],
    "first_output_s": [9.0, np.nan],
    "decode_start_s": [12.0, np.nan],
    "last_token_s": [20.0, np.nan],
    "last_output_s": [21.0, np.nan],
    "transfer_s": [1.25, 0.0],
}


def test_parts_by_hand() -> None:
    """A request whose stamps are all different, and one that did not finish."""
    frame = {name: np.array(values) for name, values in STAMPS.items()}
    ttft = {name: values[0] for name, values in ttft_parts(frame).items()}
    assert ttft == {"routing": 0.5, "queue": 1.5, "prefill": 4.0, "transfer": 1.25, "held": 0.75}
    e2e = {name: values[0] for name, values in e2e_parts(frame).items()}
    assert e2e == {
        "routing": 0.5,
        "queue": 1.5,
        "prefill": 4.0,
        "transfer": 1.25,
        "pause": 3.75,
        "decode": 8.0,
        "release": 1.0,
    }
    both = np.array([True, True])
    assert mean_parts(e2e_parts(frame), both) == e2e  # the unfinished one has no latency to divide
    assert np.isnan(list(mean_parts(ttft_parts(frame), ~both).values())).all()


@pytest.mark.parametrize("output_len", [1, 20])
@pytest.mark.parametrize(
    "strategy",
    [
        {"kind": "nodg"},
        {"kind": "nodg", "scheduler": "chunked"},
        {"kind": "fudg", "first_token": "decode"},
        {"kind": "fudg", "first_token": "prefill", "transfer": "layerwise"},
        {"kind": "padg"},
    ],
)
def test_parts_add_up_and_none_is_negative(strategy: dict[str, object], output_len: int) -> None:
    """Whatever a strategy does with a request, its time lies in one part; also of one token."""
    lengths = {"kind": "fixed", "prompt_len": 300, "output_len": output_len}
    workload = {"num_requests": 80, "lengths": lengths}
    tables = small_scenario({"name": "a", **strategy}, workload=workload)
    requests = simulate(resolve(tables), rate_rps=20).requests
    latency = request_metrics(requests)
    for parts, names, metric in (
        (ttft_parts(requests), TTFT_PARTS, "ttft_s"),
        (e2e_parts(requests), E2E_PARTS, "e2el_s"),
    ):
        assert list(parts) == list(names)
        assert np.allclose(sum(parts.values()), latency[metric], rtol=0, atol=1e-9)
        assert all((values >= 0).all() for values in parts.values())
    assert not np.isnan(list(e2e_parts(requests).values())).any()
    moves = ttft_parts(requests)["transfer"].sum() + e2e_parts(requests)["transfer"].sum()
    assert (moves > 0) == (strategy["kind"] == "fudg" and output_len > 1)
