"""Inputs that parse and are nonsense: each is refused, or a line of the output says what is odd.

Every one is run at the command line. The words are of the error, of a warning, of a note in the
heading or of a paragraph under the table. A result without a word would be taken for an answer.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from helpers.scenarios import small_scenario
from simcluster.catalog.toml_writer import to_toml
from simcluster.cli import main

NODG: dict[str, Any] = {"name": "a", "kind": "nodg"}
FUDG: dict[str, Any] = {"name": "f", "kind": "fudg"}
PADG: dict[str, Any] = {"name": "p", "kind": "padg"}
BASE = small_scenario(
    NODG,
    engine={"profile": "vllm-0.19"},
    workload={"rate_rps": 4, "num_requests": 12},
    slo={"ttft_s": 1.0, "tpot_s": 0.1},
)
GROWS = {"up": 4.0, "down": 1.0}
CLOSED = "workload.arrivals={kind='closed-loop', concurrency=100}"

SETTINGS: list[tuple[str, str]] = [
    # targets
    ("slo.ttft_s=1000", "write 1"),
    ("slo.tpot_s=50", "write 0.05"),
    ("slo.itl_s=20", "write 0.02"),
    ("slo.e2el_s=20000", "write 20"),
    ("slo.ttft_s=1e-6", "that the median prompt of 300 tokens takes alone"),
    ("slo.tpot_s=1e-6", "of a decode step of the median request alone"),
    ("slo.itl_s=1e-6", "of a decode step of the median request alone"),
    ("slo.e2el_s=0.001", "that the median request takes alone"),
    ("slo={ttft_s=10, e2el_s=5}", "slo.ttft_s = 10 never decides"),
    ("slo.attainment=0.009", "most requests may miss"),
    ("slo.attainment=90", "must be a number > 0 and <= 1"),
    ("workload.lengths.output_len=1", "say nothing of requests with one output token"),
    # the run
    ("run.warmup_s=1e6", "No request is counted"),
    ("run.cooldown_s=1e308", "No request is counted"),
    ("run.max_time_s=1e-6", "stops the clock"),
    ("run.max_time_s=1", "had not ended when run.max_time_s = 1 s"),
    ("run.seeds=[0,0]", "must differ"),
    # the engine
    ("engine.block_size=3000", "engines have 1 to 256"),
    ("engine.block_size=1000000000", "not one block of this size fits"),
    ("engine.watermark=0.99", "most of the KV cache is kept free"),
    ("engine.gpu_memory_utilization=1.0", "leaves nothing for captured graphs"),
    ("engine.gpu_memory_utilization=0.01", "does not fit"),
    ("engine.reserved_bytes=1e12", "does not fit"),
    ("engine.sampler_bytes=1e6", "does not fit"),
    ("engine.max_num_seqs=1000000000", "no engine runs that many sequences"),
    ("engine.max_num_batched_tokens=1000000000", "does not fit"),
    ("engine.chunk_size=1", "budgets of a step are"),
    ("engine.cpu_speed=0.001", "CPUs differ by less than 10"),
    ("engine.cpu_speed=1000", "CPUs differ by less than 10"),
    ("engine.host_before_s=3600", "milliseconds of CPU work a step"),
    ("engine.issue_s=3600", "a kernel is issued in microseconds"),
    ("engine.graph_issue_s=3600", "less than a millisecond"),
    ("engine.front_end_s=3600", "a front end takes milliseconds"),
    ("engine.queue_depth=1", "the queue must hold the kernels of a layer"),
    ("engine.kernel_generation=foo", "no GPU of the catalogue has kernels of this generation"),
    ("engine.kv_put_bytes_per_s=1e9", "no strategy moves KV inside the steps"),
    ("engine.kv_between_steps=true", "no strategy moves KV inside the steps"),
    ("engine.handover_s=0.01", "no strategy is of kind fudg"),
    ("engine.redoes_last_token=true", "no strategy is of kind fudg"),
    ("engine.handover_s=5", "a proxy and a front end take milliseconds"),
    ("engine.kv_poll_s=0.5", "no strategy moves KV inside the steps"),
    ("engine.kv_buffer_bytes=10", "no strategy moves KV inside the steps"),
    ("engine.kv_connector=inside", "no strategy is of kind fudg"),
    ("engine.prefix_caching=true", "requests do not say what they have in common"),
    ("engine.max_model_len=1", "must hold a prompt and an output token"),
    ("engine.max_model_len=200", "Rejected: all of the requests"),
    ("engine.max_model_len=1000000", "has a context of 4096 tokens"),
    # machines
    ("cluster.nics=1000", "is more than the 2 GPUs of a node"),
    ("cluster.gpus_per_domain=100", "is more than the 2 GPUs of a node"),
    ("cluster.gpus_per_switch=100", "is more than the 2 GPUs of a node"),
    ("cluster.nodes_per_switch=100", "all 1 nodes are on one switch"),
    ("cluster.oversubscription=4", "says nothing while all nodes are on one switch"),
    ("cluster.oversubscription=1e300", "must be a number >= 1 and <= 1000"),
    ("cluster.price_per_gpu_hour=5000", "GPUs cost 0.2 to 20 USD"),
    ("cluster.price_per_gpu_hour=1e300", "must be a number > 0 and <= 1000000"),
    ("cluster.currency=EUR", "is given without a price"),
    ("cluster.gpus_per_node=1000000000", "must be a whole number >= 1 and <= 1024"),
    ("cluster={gpu='A100', nodes=10000, gpus_per_node=8}", "are more than 32768 GPUs"),
    ("extra_cluster=[{gpu='H100'}]", "is not used"),
    ("extra_model=[{name='qwen2.5-7b'}]", "is not used"),
    ("quality={kind='measured', benchmark='gsm8k'}", "[quality] is not used"),
    ("model.weight_dtype=nvfp4", "has no nvfp4 arithmetic"),
    ("model.kv_dtype=nvfp4", "step times with this KV cache"),
    # requests
    ("workload.rate_rps=1e-9", "of the time grid"),
    ("workload.rate_rps=1e9", "all requests of a run come at once"),
    ("workload={lengths='sharegpt-ecoserve', rate_rps=1, duration_s=0.0001}", "no request arrives"),
    ("workload.lengths.prompt_len=3000000", "Rejected: all of the requests"),
    ("workload.arrivals={kind='gamma', burstiness=1e-9}", "must be a number >= 0.0001"),
    ("workload.classes=[{name='x', share=0.2}]", "share"),
    ("slo.classes.x.ttft_s=1", "the workload has no classes"),
]

STRATEGIES: list[tuple[dict[str, Any], str]] = [
    ({**NODG, "prefix_weight": 5.0}, "prefix_weight has no effect"),
    ({**NODG, "swap_bytes": 1e9}, "swap_bytes has no effect"),
    ({**NODG, "preemption": "swap", "swap_bytes": 1e300}, "must be a number > 0 and <= 1"),
    ({**NODG, "status_interval_s": 3600.0}, "by a load of minutes ago"),
    ({**NODG, "prefix_caching": True}, "requests do not say what they have in common"),
    ({**NODG, "router": "prefix-aware"}, "its router finds no prefixes"),
    ({**NODG, "num_kv_blocks": 100_000_000}, "blocks that fit in the memory"),
    ({**NODG, "num_kv_blocks": 1}, "cannot hold one sequence"),
    ({**NODG, "tp_across_nodes": True}, "tp_across_nodes has no effect"),
    ({**NODG, "chunk_size": 2}, "a prompt takes a step for every 2 of its tokens"),
    ({**NODG, "scheduler": "prefill-priority", "chunk_size": 5}, "does not split prompts"),
    ({**NODG, "tp_size": 3}, "a node has 2 GPUs"),
    ({**NODG, "queue": "priority"}, "all requests have the same priority"),
    ({**NODG, "autoscale": {**GROWS, "down": 9.0}}, "must be below up"),
    ({**NODG, "autoscale": {**GROWS, "up": 1e300}}, "must be a number > 0 and <= 1000000"),
    (
        {**NODG, "autoscale": {**GROWS, "min_instances": 2, "max_instances": 1}},
        "is more than max_instances",
    ),
    (
        {**NODG, "autoscale": {**GROWS, "min_instances": 1, "max_instances": 1}},
        "min_instances and max_instances are equal",
    ),
    ({**NODG, "autoscale": {**GROWS, "start_up_s": 80_000.0}}, "longer than most runs"),
    ({**NODG, "autoscale": {**GROWS, "interval_s": 80_000.0}}, "longer than most runs"),
    ({**FUDG, "early_rejection": True}, "needs an estimate of the TTFT"),
    ({**FUDG, "placement": "inter-node"}, "both pools stand on the one node"),
    ({**FUDG, "transfer": "layerwise", "pool": "remote"}, "needs a node beside"),
    ({**FUDG, "decode_autoscale": GROWS}, "pools that share nodes cannot be scaled"),
    ({**FUDG, "prefix_weight": 5.0}, "prefix_weight has no effect"),
    ({**PADG, "instances": 1}, "a ring of one has no window"),
    ({**PADG, "macro_instances": 9}, "is more than the 2 instances"),
    ({**PADG, "window": "fixed:1e9"}, "a window of 1e+09 TTFT targets"),
    ({**PADG, "prefill_error": 100.0}, "must be a number >= 0 and <= 5"),
    ({**PADG, "slack": "quantile:2"}, "q from 0 to 1"),
]


def said(tmp_path: Path, tables: dict[str, Any], *arguments: str) -> str:
    """Everything that a run says, on one line."""
    path = tmp_path / "scenario.toml"
    path.write_text(to_toml(tables))
    done = CliRunner().invoke(main, ["run", str(path), *arguments])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    assert done.exit_code in (0, 1)
    return " ".join((done.stdout + done.stderr).split())


def test_the_scenario_itself_is_said_nothing_about(tmp_path: Path) -> None:
    """So that each line of the tests below is about their one change."""
    text = said(tmp_path, BASE)
    for words in ("Note:", "warning:", "no effect", "unusual", "Rejected", "No request"):
        assert words not in text


@pytest.mark.parametrize(("setting", "words"), SETTINGS, ids=[s for s, _ in SETTINGS])
def test_a_setting_that_parses_and_is_nonsense(tmp_path: Path, setting: str, words: str) -> None:
    """Refused, or said."""
    assert words in said(tmp_path, BASE, "--set", setting)


@pytest.mark.parametrize(
    ("strategy", "words"), STRATEGIES, ids=[f"{s['kind']} {list(s)[2:]}" for s, _ in STRATEGIES]
)
def test_a_strategy_that_parses_and_is_nonsense(
    tmp_path: Path, strategy: dict[str, Any], words: str
) -> None:
    """Refused, or said."""
    assert words in said(tmp_path, {**BASE, "strategy": [strategy]})


def test_more_users_than_requests(tmp_path: Path) -> None:
    """A closed loop that nobody closes."""
    settings = ("--set", CLOSED, "--set", "workload.rate_rps=")
    assert "nobody comes after them" in said(tmp_path, BASE, *settings)


def test_there_are_sixty_at_least() -> None:
    """A list of this length was asked for."""
    assert len(SETTINGS) + len(STRATEGIES) >= 60
