"""Ten requests per strategy, one line per event, reviewed and committed.

``pytest tests/test_golden.py --update-golden`` rewrites the files; read the diff before committing
it, and say in the change log why it moved.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from simcluster.config import ModelConfig, SloConfig
from simcluster.runs.result import Result
from simcluster.runs.simulate import RESOLUTIONS, run
from simcluster.strategies import FuDG, NoDG, PaDG
from simcluster.testing.specs import environment, llama_2_7b, vllm_engine
from simcluster.units import grid_array
from simcluster.workload import Workload

GOLDEN = Path(__file__).parent / "golden"

# Two of the requests arrive together, one is a single token, one is long, and the last three come
# fast enough to queue.
ARRIVALS = [0.0, 0.05, 0.05, 0.2, 0.31, 0.32, 0.6, 0.61, 0.62, 0.62]
PROMPTS = [100, 40, 310, 16, 233, 64, 256, 290, 15, 200]
OUTPUTS = [12, 1, 6, 60, 40, 37, 60, 3, 45, 2]

STRATEGIES = {
    "vllm": NoDG(name="vllm", instances=2),
    "vllm-tight": NoDG(name="vllm-tight", instances=1, num_kv_blocks=22),
    "sarathi": NoDG(name="sarathi", instances=2, scheduler="chunked", chunk_size=256),
    "pipelined": NoDG(name="pipelined", instances=1, pp_size=2, num_kv_blocks=60),
    "pipelined-sarathi": NoDG(
        name="pipelined-sarathi", instances=1, pp_size=2, scheduler="chunked", chunk_size=256
    ),
    "shared-queue": NoDG(name="shared-queue", instances=2, router="shared-queue", max_num_seqs=2),
    "distserve": FuDG(name="distserve", prefill_instances=1, decode_instances=1),
    "mooncake": FuDG(
        name="mooncake", prefill_instances=1, decode_instances=1, placement="inter-node"
    ),
    "ecoserve": PaDG(name="ecoserve", instances=2),
}


def events(result: Result) -> list[str]:
    """Everything that happened, in order of time, as lines of text."""
    lines: list[tuple[float, str]] = []
    requests = result.columns["requests"]
    stamps = {
        "arrival_s": "arrives",
        "routed_s": "is routed to {prefill_instance}",
        "scheduled_s": "starts to prefill on {prefill_instance}",
        "first_token_s": "has its first token",
        "decode_start_s": "starts to decode on {decode_instance}",
        "first_output_s": "first output released",
        "last_token_s": "has its last token",
        "last_output_s": "last output released",
    }
    for stamp, text in stamps.items():
        for row, time in enumerate(requests[stamp]):
            where = {k: requests[k][row] for k in ("prefill_instance", "decode_instance")}
            lines.append((time, f"request {row} {text.format(**where)}"))
    segments = result.columns["segments"]
    for number, preemptions in enumerate(requests["num_preemptions"]):
        if preemptions:
            lines.append(
                (
                    requests["last_output_s"][number],
                    f"request {number} was preempted {preemptions} times",
                )
            )
    for row, number in enumerate(segments["request_id"]):
        span = f"steps {segments['first_step'][row]} to {segments['last_step'][row]}"
        time = requests["last_token_s"][number]
        lines.append((time, f"request {number} decoded in {span} of {segments['instance'][row]}"))
    for row, number in enumerate(result.columns["transfers"]["request_id"]):
        transfer = {k: v[row] for k, v in result.columns["transfers"].items()}
        links = transfer["path"].split(" > ")
        route = f"{links[0]} to {links[-1]}"
        text = f"request {number}: {transfer['num_bytes']} bytes"
        lines.append((transfer["start_s"], f"{text} leave {route}"))
        lines.append((transfer["end_s"], f"{text} arrive {route}"))
    for row, instance in enumerate(result.columns["windows"]["instance"]):
        window = {k: v[row] for k, v in result.columns["windows"].items()}
        lines.append((window["opened_s"], f"window of {instance} opens"))
        lines.append((window["closed_s"], f"window of {instance} closes"))
        if not np.isnan(window["released_s"]):
            lines.append((window["released_s"], f"output of {instance} released"))
    return [f"{time:.9f} {text}" for time, text in sorted(lines)]


def simulated(strategy: Any, resolution: str) -> list[str]:
    """The events of the ten requests under `strategy`."""
    where = environment(engine=vllm_engine(), slo=SloConfig(ttft_s=0.012, tpot_s=0.003))
    # Fewer layers than the real model, so that the kernel-by-kernel run stays short.
    spec = llama_2_7b(num_layers=4)
    where = dataclasses.replace(where, model=ModelConfig(spec=spec, max_model_len=352))
    load = Workload(
        arrival_s=grid_array(np.array(ARRIVALS) / 16),
        prompt_len=np.array(PROMPTS),
        output_len=np.array(OUTPUTS),
        rejected=np.zeros(len(ARRIVALS), bool),
    )
    return events(run(where, strategy, load, resolution=resolution))


@pytest.mark.parametrize("resolution", RESOLUTIONS)
@pytest.mark.parametrize("name", STRATEGIES)
def test_ten_requests_go_as_reviewed(
    name: str, resolution: str, request: pytest.FixtureRequest
) -> None:
    """Each strategy does with ten requests what somebody has read and found right."""
    lines = simulated(STRATEGIES[name], resolution)
    path = GOLDEN / f"{name}.txt"
    if request.config.getoption("--update-golden"):
        path.write_text("\n".join(lines) + "\n")
    assert lines == path.read_text().splitlines()
