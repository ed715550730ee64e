"""`simcluster check` against arithmetic on paper, and against runs of the same scenario.

The right values are made here from data sheets, config.json and the formulas that engines document;
nothing of the package's own arithmetic is used.
"""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import simcluster
from helpers.scenarios import small_scenario
from simcluster.catalog.toml_writer import to_toml
from simcluster.cli import main
from simcluster.errors import DataError
from simcluster.scenario.file import resolve
from simcluster.studies.check.facts import facts
from simcluster.studies.check.report import check_text

PACKAGE = Path(simcluster.__file__).parent
PROMPT, OUTPUT = 2000, 200

# Llama-3.1-8B by its config.json: hidden 4096, 32 layers, 32 heads and 8 KV heads of 128, MLP
# 14336, vocabulary 128256, embedding and head apart.
HIDDEN, LAYERS, KV_WIDTH, FFN, VOCABULARY = 4096, 32, 8 * 128, 14336, 128256
PARAMS = (
    2 * VOCABULARY * HIDDEN
    + LAYERS * (2 * HIDDEN * HIDDEN + 2 * HIDDEN * KV_WIDTH + 3 * HIDDEN * FFN + 2 * HIDDEN)
    + HIDDEN
)
KV_PER_TOKEN = 2 * LAYERS * KV_WIDTH * 2


def row(table: str, file: str, name: str) -> dict[str, Any]:
    """An entry of the catalogue as its file has it."""
    rows = tomllib.loads((PACKAGE / "catalog" / file).read_text(encoding="utf-8"))[table]
    return next(one for one in rows if one["name"] == name)


def llama(strategy: dict[str, Any], **tables: dict[str, Any]) -> simcluster.Scenario:
    """Llama-3.1-8B on H100, equal requests far apart."""
    given: dict[str, dict[str, Any]] = {
        "model": {"name": "llama-3.1-8b"},
        "cluster": {"gpu": "H100", "gpus_per_node": 2},
        "engine": {"profile": "vllm-0.19", "max_model_len": 8192},
        "workload": {
            "lengths": {"kind": "fixed", "prompt_len": PROMPT, "output_len": OUTPUT},
            "arrivals": "constant",
            "rate_rps": 0.1,
            "num_requests": 5,
        },
    }
    merged = {name: {**given.get(name, {}), **tables.get(name, {})} for name in {**given, **tables}}
    return simcluster.resolve(small_scenario({"name": "s", **strategy}, **merged))


def only(scenario: simcluster.Scenario) -> dict[str, Any]:
    """The facts of the one strategy."""
    (one,) = facts(scenario)["strategies"]
    return dict(one)


def test_memory_and_batch_on_paper() -> None:
    """Weights, KV of a token, pool and largest batch of one H100, from the published numbers."""
    (pool,) = only(llama({"kind": "nodg"}))["pools"]
    weights = 2 * PARAMS
    assert pool["weight_bytes_per_gpu"] == pytest.approx(weights, rel=1e-6)
    assert weights == pytest.approx(16.06e9, rel=1e-3)  # size of the published checkpoint
    assert pool["kv_bytes_per_token_per_gpu"] == KV_PER_TOKEN == 131_072
    gpu, engine = row("gpu", "gpus.toml", "H100 SXM"), row("engine", "engines.toml", "vllm-0.19")
    total = gpu.get("cuda_mib", gpu["memory_mib"] - 600) * 2**20
    # vLLM: utilisation x total - weights - peak of the profiling pass (its sampler) - the rest.
    sampler = engine["sampler_bytes"] * engine["large_gpu_max_num_seqs"] * VOCABULARY
    room = 0.9 * total - weights - sampler - 1e9 * engine["reserved_gb"]
    blocks = int(room // (16 * KV_PER_TOKEN))
    assert pool["kv_blocks"] == blocks
    assert pool["kv_pool_tokens"] == 16 * blocks
    held = blocks // -(-(PROMPT + OUTPUT) // 16)
    assert pool["batch_in_memory"] == pool["batch"] == held
    assert pool["max_num_batched_tokens"] == engine["large_gpu_chunk_size"]


def test_weights_and_cache_are_split_over_a_group() -> None:
    """Two GPUs: half of the matrices, the norms on both, half of the KV heads; 50 sequences."""
    (pool,) = only(llama({"kind": "nodg", "tp_size": 2, "max_num_seqs": 50}))["pools"]
    norms = 2 * (2 * LAYERS + 1) * HIDDEN
    assert pool["weight_bytes_per_gpu"] == pytest.approx(PARAMS + norms / 2, rel=1e-6)
    assert pool["kv_bytes_per_token_per_gpu"] == KV_PER_TOKEN / 2
    assert pool["batch"] == 50 < pool["batch_in_memory"]


@pytest.mark.parametrize(
    ("network", "gbit", "reached"), [("10gbe", 10, 0.94), ("100gbe", 100, None)]
)
def test_the_transfer_of_a_median_prompt_on_paper(
    network: str, gbit: float, reached: float | None
) -> None:
    """Bytes of the prompt over the narrowest link, the NIC of a node, and its latency."""
    strategy = {"kind": "fudg", "placement": "inter-node", "pool": "none"}
    scenario = llama(strategy, cluster={"nodes": 2, "gpus_per_node": 1, "network": network})
    move = only(scenario)["transfer"]
    link = row("link", "links.toml", network)
    if reached is not None:
        assert link["efficiency"] == reached
    assert move["bytes"] == PROMPT * KV_PER_TOKEN == 262_144_000
    least = move["bytes"] / (gbit / 8 * 1e9 * link["efficiency"])
    latencies = 1e-6 * (link["latency_us"] + row("link", "links.toml", "pcie5")["latency_us"])
    assert move["seconds"] == pytest.approx(least + latencies, rel=1e-6)
    found = facts(scenario)
    assert {one["link"] for one in found["links"]} == {network, "pcie5"}
    assert found["strategies"][0]["bound"]["transfer_rps"] == pytest.approx(1 / least, rel=1e-6)


STRATEGIES: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("nodg", {"kind": "nodg"}, {}),
    ("tensor", {"kind": "nodg", "tp_size": 2}, {}),
    ("chunks", {"kind": "nodg", "chunk_size": 512}, {}),
    ("whole", {"kind": "nodg", "scheduler": "prefill-priority"}, {}),
    ("padg", {"kind": "padg"}, {"slo": {"ttft_s": 5.0, "tpot_s": 0.1}}),
    ("fudg", {"kind": "fudg"}, {}),
    ("fudg of two nodes", {"kind": "fudg", "placement": "inter-node"}, {"cluster": {"nodes": 2}}),
    ("fudg from the prefill side", {"kind": "fudg", "first_token": "prefill"}, {}),
    ("overlapped", {"kind": "nodg"}, {"engine": {"profile": "trtllm-1"}}),
]


@pytest.mark.parametrize(
    ("strategy", "tables"), [s[1:] for s in STRATEGIES], ids=[s[0] for s in STRATEGIES]
)
def test_a_request_alone_is_served_as_checked(
    strategy: dict[str, Any], tables: dict[str, Any]
) -> None:
    """TTFT is the first token of a median request; TPOT a decode step of one, half way through."""
    scenario = llama(strategy, **tables)
    one = only(scenario)
    requests = simcluster.simulate(scenario).requests
    # Half a millisecond: with PaDG, the first token is shown by the step after the prefill.
    assert requests["ttft_s"].median() == pytest.approx(one["first_token_s"], rel=0.01, abs=5e-4)
    decode_s = one["pools"][-1]["decode_s"]
    assert requests["tpot_s"].median() == pytest.approx(decode_s, rel=0.02)


@pytest.mark.parametrize(
    ("strategy", "tables"),
    [s[1:] for s in STRATEGIES if s[0] != "chunks"],
    ids=[s[0] for s in STRATEGIES if s[0] != "chunks"],
)
def test_nothing_is_served_faster_than_the_bound(
    strategy: dict[str, Any], tables: dict[str, Any]
) -> None:
    """600 requests at once: the rate at which they finish stays below, and within a factor of 2."""
    workload = {"arrivals": "poisson", "rate_rps": 1e6, "num_requests": 600}
    scenario = llama(strategy, **{**tables, "workload": workload})
    bound = only(scenario)["bound"]
    requests = simcluster.simulate(scenario).requests
    served = len(requests) / (requests["arrival_s"] + requests["e2el_s"]).max()
    assert 0.5 * bound["total_rps"] < served < bound["total_rps"]
    if "steady_rps" in bound:
        assert served < 1.05 * bound["steady_rps"]
    assert any("its queue grows" in note for note in facts(scenario)["notes"])


def test_layers_with_a_window_are_bounded_by_what_they_read(tmp_path: Path) -> None:
    """A bound that lets them read all tokens would be below what is served."""
    config = {
        "architectures": ["MistralForCausalLM"],
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "vocab_size": 32000,
        "max_position_embeddings": 32768,
        "sliding_window": 256,
        "torch_dtype": "bfloat16",
        "tie_word_embeddings": False,
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    lengths = {"kind": "fixed", "prompt_len": 600, "output_len": 600}
    scenario = llama(
        {"kind": "nodg", "instances": 1, "scheduler": "prefill-priority"},
        model={"name": str(tmp_path)},
        workload={"lengths": lengths, "arrivals": "poisson", "rate_rps": 1e6, "num_requests": 900},
    )
    one = only(scenario)
    requests = simcluster.simulate(scenario).requests
    served = len(requests) / (requests["arrival_s"] + requests["e2el_s"]).max()
    assert 0.6 * one["bound"]["total_rps"] < served < one["bound"]["total_rps"]


def test_host_work_under_the_step_before_does_not_lower_the_bound() -> None:
    """4 ms of it beside steps of 7: a bound that adds them is half of what is served."""
    engine = {"profile": "trtllm-1", "host_before_s": 0.004}
    lengths = {"kind": "fixed", "prompt_len": 10, "output_len": 300}
    burst = {"lengths": lengths, "arrivals": "poisson", "rate_rps": 1e6, "num_requests": 64}
    strategy = {"kind": "nodg", "instances": 1, "max_num_seqs": 16}
    scenario = llama(strategy, engine=engine, workload=burst)
    requests = simcluster.simulate(scenario).requests
    served = len(requests) / (requests["arrival_s"] + requests["e2el_s"]).max()
    bound = only(scenario)["bound"]["total_rps"]
    assert 0.9 * bound < served < bound


def test_prefixes_that_are_reused_raise_the_bound(tmp_path: Path) -> None:
    """Half of every prompt but the first is known: a bound for whole prompts would be broken."""
    ids = [list(range(4)), [0, 1, 4, 5], [0, 1, 6, 7], [0, 1, 8, 9]]
    lines = [
        {"timestamp": 0, "input_length": 2048, "output_length": 2, "hash_ids": one} for one in ids
    ]
    trace = tmp_path / "trace.jsonl"
    trace.write_text("\n".join(map(json.dumps, lines)))
    told = {"path": str(trace), "format": "mooncake", "time_unit": "ms", "block_size": 512}
    tables = {"workload": {"trace": told}, "model": {"name": "llama-3.1-8b"}}
    tables |= {"cluster": {"gpu": "H100", "gpus_per_node": 1}}

    def found(*, reuse: bool) -> dict[str, Any]:
        engine = {"profile": "vllm-0.19", "prefix_caching": reuse}
        document = {**tables, "engine": engine, "strategy": [{"name": "s", "kind": "nodg"}]}
        return facts(simcluster.resolve(document))

    assert found(reuse=True)["requests"]["reused_token_share"] == pytest.approx(3 / 8)
    bounds = [
        found(reuse=reuse)["strategies"][0]["bound"]["prefill_rps"] for reuse in (False, True)
    ]
    assert 1.3 < bounds[1] / bounds[0] < 1.7  # 1 / (1 - 3/8) = 1.6, without the fixed part


def test_several_models_are_bounded_by_the_one_that_is_short() -> None:
    """A model that gets a tenth of the requests lets ten times its own bound through."""
    base = {"kind": "nodg", "instances": 1}
    tables: dict[str, Any] = {
        "model": {"name": "llama-3.1-8b"},
        "extra_model": [{"name": "qwen2.5-14b"}],
        "cluster": {"gpu": "H100", "gpus_per_node": 2},
        "engine": {"max_model_len": 8192},
        "workload": {
            "lengths": {"kind": "fixed", "prompt_len": PROMPT, "output_len": OUTPUT},
            "rate_rps": 1,
            "num_requests": 10,
        },
    }
    pools = [
        {"model": m, "gpu": "H100", "serving": {**base, "name": m}}
        for m in ("llama-3.1-8b", "qwen2.5-14b")
    ]
    routed = {"name": "r", "kind": "routed", "models": [p["model"] for p in pools], "pool": pools}

    def total(share: float) -> float:
        strategy = {**routed, "fractions": [1 - share, share]}
        found = facts(simcluster.resolve({**tables, "strategy": [strategy]}))
        assert [pool["model"] for pool in found["strategies"][0]["pools"]] == routed["models"]
        return float(found["strategies"][0]["bound"]["total_rps"])

    assert total(0.9) * 0.9 == pytest.approx(total(1.0))
    assert total(0.1) > total(0.9)


def test_a_workload_of_which_nothing_can_be_served_is_refused() -> None:
    """There is no median request; the run itself would print dashes."""
    with pytest.raises(
        DataError, match=r"all 5 requests are longer than engine.max_model_len = 64"
    ):
        facts(llama({"kind": "nodg"}, engine={"max_model_len": 64}))


def test_requests_of_one_token_are_prefills_alone() -> None:
    """No step decodes: the bound is that of the prefills, half of it on one GPU of two."""
    lengths = {"kind": "fixed", "prompt_len": PROMPT, "output_len": 1}
    for strategy in ({"kind": "nodg"}, {"kind": "fudg"}):
        bound = only(llama(strategy, workload={"lengths": lengths}))["bound"]
        assert bound["total_rps"] == bound["prefill_rps"]
        assert bound["decode_rps"] is None


def test_the_command_prints_a_table_and_its_json(tmp_path: Path) -> None:
    """No line is too wide; numbers in SI units with --json; a run with -v begins with the same."""
    strategy = {"kind": "fudg", "placement": "inter-node"}
    scenario = llama(strategy, cluster={"nodes": 2}, slo={"ttft_s": 1.0})
    text = check_text(scenario, facts(scenario))
    path = tmp_path / "scenario.toml"
    path.write_text(to_toml(scenario.document))

    def call(*arguments: str) -> str:
        done = CliRunner().invoke(main, [*arguments, str(path)], catch_exceptions=False)
        assert done.exit_code == 0, done.output
        return done.stdout

    assert call("check") == text
    assert max(map(len, text.splitlines())) <= 80
    for words in ("weights per GPU (GB)", "16.06", "KV transfer of the median prompt", "known by"):
        assert words in text
    known = json.loads(call("check", "--json"))
    assert known["strategies"][0]["pools"][0]["kv_bytes_per_token_per_gpu"] == KV_PER_TOKEN
    assert known["engine"]["scheduler"] == "chunked"
    assert {one["figure"] for one in known["accuracy"]} >= {"KV pool", "links"}
    detailed = call("run", "-v")
    assert "Requests/s at most" in detailed
    assert "finished requests/s" in detailed
    assert json.loads(call("run", "-v", "--json"))["check"] == known


def test_notes_are_said_once(tmp_path: Path) -> None:
    """In the heading or below; also where a run begins with the same."""
    scenario = llama({"kind": "fudg", "placement": "inter-node"}, slo={"ttft_s": 1000.0})
    notes = [" ".join(note.split()) for note in facts(scenario)["notes"]]
    assert len(notes) >= 2
    path = tmp_path / "scenario.toml"
    path.write_text(to_toml(scenario.document))
    for words in (["check"], ["run", "-v"]):
        done = CliRunner().invoke(main, [*words, str(path)], catch_exceptions=False)
        plain = " ".join(done.stdout.split())
        assert [plain.count(note) for note in notes] == [1] * len(notes)


def test_a_search_s_question_needs_no_rate() -> None:
    """What memory and steps come to does not depend on it; nothing is compared with the bound."""
    document = small_scenario({"name": "one", "kind": "nodg"})
    document["workload"] = {"lengths": {"kind": "fixed", "prompt_len": 100, "output_len": 10}}
    without = facts(resolve(document))
    named = facts(resolve(document), rate_rps=1e6)
    assert without["strategies"] == named["strategies"]
    assert without["requests"]["rate_rps"] is None
    assert any("No rate is named" in note for note in without["notes"])
    assert any("its queue grows" in note for note in named["notes"])


def test_api_servers_bound_the_rate() -> None:
    """Two instances with three processes each; 20 ms a request and 0.1 ms for each token."""
    engine = {"profile": "vllm-0.11", "max_model_len": 8192}
    slow = {"api_servers": 3, "api_request_s": 0.02, "api_token_s": 1e-4}
    free, limited = (
        facts(llama({"kind": "nodg"}, engine=one))["strategies"][0]["bound"]
        for one in (engine, engine | slow)
    )
    assert "api_rps" not in free
    assert limited["api_rps"] == pytest.approx(2 * 3 / (0.02 + OUTPUT * 1e-4))
    assert limited["total_rps"] == min(free["total_rps"], limited["api_rps"])
