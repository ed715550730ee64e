"""KV pools against what engines logged, and the blocks of a sequence by kinds of layers."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from simcluster import catalog
from simcluster.catalog import config_json
from simcluster.catalog.layers import ModelSpec
from simcluster.config import ModelConfig
from simcluster.errors import ConfigError
from simcluster.kvcache import BlockLayout, LimitedGroup
from simcluster.roofline.memory import (
    ProfilingPass,
    activation_bytes,
    block_bytes,
    check_tp,
    kv_blocks,
    kv_layout,
    kv_pool_bytes,
    tp_degrees,
    weight_bytes_per_gpu,
)
from simcluster.testing.specs import a100, ideal_engine, llama_2_7b, vllm_engine

# Measured pools ---------------------------------------------------------------------------------

QWEN3_235B = ("qwen3-235b-a22b", "H100", "vllm-0.11", 4)
LOGGED: dict[str, tuple[tuple[str, str, str, int], dict[str, Any], int, float]] = {
    # name: (model, GPU, engine, TP), settings, tokens logged, share allowed
    "LLMServingSim, vLLM 0.19": (
        ("llama-3.1-8b", "RTX 4090", "vllm-0.19", 1),
        {"num_tokens": 2048},
        41_408,
        0.01,
    ),
    "five systems on L20, vLLM 0.10.1.1": (
        ("qwen2.5-7b", "L20", "vllm-0.11", 1),
        {"gpu_memory_utilization": 0.85, "num_tokens": 8192, "num_seqs": 256},
        411_824,
        0.01,
    ),
    "vllm-project/vllm#17122, 0.8.5": (
        ("llama-3.1-8b", "L40S", "vllm-0.11", 1),
        {"gpu_memory_utilization": 0.9, "num_tokens": 2048, "num_seqs": 1024},
        158_656,
        0.03,
    ),
    "vllm-project/vllm#21348, 0.9.2": (
        QWEN3_235B,
        {"weight_dtype": "fp8-block", "gpu_memory_utilization": 0.9, "num_tokens": 8192},
        178_880,
        0.01,
    ),
    "SGLang on the same GPUs": (
        QWEN3_235B,
        {
            "weight_dtype": "fp8-block",
            "gpu_memory_utilization": 0.93,
            "num_tokens": 8192,
            "memory_rule": "static",
        },
        367_404,
        0.01,
    ),
    "PagedAttention's vLLM 0.2, one A100": (
        ("llama-2-7b", "A100", "vllm-0.2", 1),
        {"num_tokens": 4096},
        7351 * 16,
        0.01,
    ),
    "PagedAttention's vLLM 0.2, four A100": (
        ("llama-2-70b", "A100", "vllm-0.2", 4),
        {"num_tokens": 4096},
        20_865 * 16,
        0.01,
    ),
}


@pytest.mark.parametrize("name", LOGGED)
def test_a_pool_is_what_the_engine_logged(name: str) -> None:
    """Tokens of the KV cache, by one GPU and by four."""
    (model_name, gpu_name, engine_name, tp_size), changes, logged, share = LOGGED[name]
    settings = dict(changes)
    limits = [settings.pop(key, None) for key in ("num_tokens", "num_seqs")]
    model = ModelConfig(
        spec=catalog.model(model_name),
        max_model_len=4096,
        weight_dtype=settings.pop("weight_dtype", None),
    )
    engine, gpu = replace(catalog.engine(engine_name), **settings), catalog.gpu(gpu_name)
    profiled = ProfilingPass.of(model, gpu, engine, *limits)
    blocks = kv_blocks(model, gpu, engine, tp_size, key="tp_size", profiled=profiled)
    assert blocks * engine.block_size == pytest.approx(logged, rel=share)


def test_each_part_of_the_memory_is_taken_off_once() -> None:
    """The three rules of dividing it, written out: vLLM, SGLang, TensorRT-LLM."""
    model = ModelConfig(spec=llama_2_7b(), max_model_len=4096)
    engine = replace(vllm_engine(), sampler_bytes=40.0, communicator_bytes=1e9)
    profiled = ProfilingPass(2048, 256)
    memory, outside = a100().allocatable_bytes, 2e9 + 1e9
    weights = weight_bytes_per_gpu(model, 2)
    peak = activation_bytes(model, engine, 2, profiled)
    assert peak == max(40.0 * 256 * 32000, 2.0 * 2048 * (2 * 4096 + 3 * 11008 / 2))
    pools = {
        rule: kv_pool_bytes(model, a100(), replace(engine, memory_rule=rule), 2, profiled=profiled)
        for rule in ("total", "static", "free")
    }
    assert pools["total"] == pytest.approx(0.9 * memory - weights - peak - outside)
    assert pools["static"] == pytest.approx(0.9 * (memory - outside) - weights)
    assert pools["free"] == pytest.approx(0.9 * (memory - weights - peak - outside))


def test_one_gpu_has_no_communicators_and_the_sampler_is_on_every_rank() -> None:
    """What does not shrink with the degree: 1.5 to 1.9 times too large a pool came of that."""
    model = ModelConfig(spec=llama_2_7b(), max_model_len=4096)
    bare = vllm_engine()
    engine = replace(bare, sampler_bytes=40.0, communicator_bytes=1e9)
    profiled = ProfilingPass(256, 256)
    beside = {
        tp: kv_pool_bytes(model, a100(), bare, tp)
        - kv_pool_bytes(model, a100(), engine, tp, profiled=profiled)
        for tp in (1, 2, 8)
    }
    sampler = 40.0 * 256 * 32000
    assert beside == pytest.approx({1: sampler, 2: sampler + 1e9, 8: sampler + 1e9})


# Blocks of a sequence ---------------------------------------------------------------------------


def layout_of(spec: ModelSpec, tp_size: int = 1, num_tokens: int = 2048) -> BlockLayout:
    """Return how an instance of `spec` keeps sequences, with blocks of 16 tokens."""
    served = ModelConfig(spec=spec, max_model_len=4096)
    return kv_layout(served, ideal_engine(), tp_size, num_tokens)


GEMMA_3 = llama_2_7b(
    name="gemma-3-27b",
    hidden_size=5376,
    num_kv_heads=16,
    layers=[
        {"repeat": 10, "of": [{"repeat": 5, "sliding_window": 1024}, {}]},
        {"repeat": 2, "sliding_window": 1024},
    ],
)
GPT_OSS = llama_2_7b(
    name="gpt-oss-120b", layers=[{"repeat": 18, "of": [{"sliding_window": 128}, {}]}]
)
LLAMA_4 = llama_2_7b(
    name="llama-4", layers=[{"repeat": 12, "of": [{"repeat": 3, "attention_chunk": 8192}, {}]}]
)
MISTRAL = llama_2_7b(name="mistral", layers=[{"repeat": 32, "sliding_window": 4096}])


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        (llama_2_7b(), BlockLayout(16)),
        # 52 layers behind the window in 6 groups of 10; 1023 tokens before the newest, and where
        # the window begins inside a block one block more. A step of a prompt adds 2048 tokens.
        (GEMMA_3, BlockLayout(16, 1, (LimitedGroup(6, 65, 193),))),
        (GPT_OSS, BlockLayout(16, 1, (LimitedGroup(1, 9, 137),))),
        (LLAMA_4, BlockLayout(16, 1, (LimitedGroup(3, 512, 640),))),
        (MISTRAL, BlockLayout(16, 0, (LimitedGroup(1, 257, 385),))),
    ],
    ids=lambda value: value.name if isinstance(value, ModelSpec) else "",
)
def test_the_groups_of_a_model(spec: ModelSpec, expected: BlockLayout) -> None:
    """As vLLM's hybrid KV cache manager deals the layers out."""
    assert layout_of(spec) == expected


def test_windows_hold_six_sequences_in_place_of_one() -> None:
    """Gemma 3 at 120,000 tokens: one layer of six keeps all of them."""
    apart, engine = layout_of(GEMMA_3), ideal_engine()
    served = ModelConfig(spec=GEMMA_3, max_model_len=120_000)
    together = kv_layout(served, replace(engine, hybrid_kv_cache=False), 1, 2048)
    num_bytes = {}
    for name, layout in (("apart", apart), ("together", together)):
        own = replace(engine, hybrid_kv_cache=name == "apart")
        size = block_bytes(served, own, 1, layout)
        num_bytes[name] = layout.blocks_for(120_000) * size
    per_layer = 2 * 2 * 16 * 128
    assert num_bytes["together"] == 62 * 120_000 * per_layer
    assert num_bytes["apart"] == (10 * 120_000 + 60 * 65 * 16) * per_layer
    assert 5.8 < num_bytes["together"] / num_bytes["apart"] < 6.0


@pytest.mark.parametrize("spec", [GEMMA_3, GPT_OSS, LLAMA_4, MISTRAL], ids=lambda spec: spec.name)
def test_a_sequence_keeps_what_its_layers_still_see(spec: ModelSpec) -> None:
    """Counted layer by layer and token by token: the closed form is at most two blocks above."""
    layout = layout_of(spec)
    limits = {g.weight: spec.reach for g in layout.limited}
    for num_tokens in [*range(1, 300, 7), 1000, 4096, 4097, 8191, 8193, 20_000]:
        held = layout.full * -(-num_tokens // 16)
        for weight, reach in limits.items():
            assert reach is not None
            first = num_tokens - reach.of(num_tokens)
            held += weight * (-(-num_tokens // 16) - first // 16)
        spare = layout.blocks_for(num_tokens) - held
        if reach is not None and reach.chunked:
            assert spare >= 0  # a chunk that is over waits for the next to take its place
        else:
            assert 0 <= spare <= 2 * sum(limits)


def test_a_state_makes_blocks_as_large_as_itself(tmp_path: Path) -> None:
    """Qwen3-Next: blocks of 544 tokens (vLLM's recipe for it), and a state is one block each."""
    keys = {"num_hidden_layers": 48, "hidden_size": 2048, "vocab_size": 151936}
    keys |= {"num_attention_heads": 16, "num_key_value_heads": 2, "head_dim": 256}
    keys |= {"full_attention_interval": 4, "linear_conv_kernel_dim": 4}
    keys |= {"linear_num_key_heads": 16, "linear_num_value_heads": 32}
    keys |= {"linear_key_head_dim": 128, "linear_value_head_dim": 128}
    keys |= {"num_experts": 512, "num_experts_per_tok": 10, "decoder_sparse_step": 1}
    keys |= {"moe_intermediate_size": 512, "shared_expert_intermediate_size": 512}
    keys |= {"intermediate_size": 5120, "max_position_embeddings": 262_144}
    file = tmp_path / "config.json"
    file.write_text(json.dumps({"architectures": ["Qwen3NextForCausalLM"], **keys}))
    layout = layout_of(config_json.model(file))
    assert layout == BlockLayout(544, 1, (LimitedGroup(3, 1, 1),))
    assert not layout.reuses_prefixes
    assert [layout.blocks_for(n) for n in (1, 544, 545, 54_400)] == [4, 4, 5, 103]


def test_prefixes_are_reused_where_a_layer_keeps_all_tokens() -> None:
    """Blocks behind a window are given back, so something must still hold the first tokens."""
    layouts = [layout_of(spec) for spec in (llama_2_7b(), GEMMA_3, LLAMA_4, MISTRAL)]
    assert [layout.reuses_prefixes for layout in layouts] == [True, True, True, False]


@pytest.mark.parametrize("spec", [GEMMA_3, LLAMA_4, MISTRAL], ids=lambda spec: spec.name)
@pytest.mark.parametrize("num_blocks", [0, 1, 700, 4000, 100_000])
def test_the_longest_sequence_of_a_pool_is_found(spec: ModelSpec, num_blocks: int) -> None:
    """One block of tokens more would not fit; a model of windows only holds any length."""
    layout = layout_of(spec)
    longest = layout.tokens_in(num_blocks)
    assert layout.prompt_blocks(longest) <= num_blocks
    bounded = sum(group.weight * group.most_in_prefill for group in layout.limited)
    if layout.full == 0 and num_blocks >= bounded:
        assert longest > 1 << 40
    else:
        assert layout.prompt_blocks(longest + 1) > num_blocks


def test_layers_of_two_widths_share_blocks() -> None:
    """Latent layers beside others: a block has the tokens of the wider one in several."""
    spec = llama_2_7b(
        layers=[{"repeat": 4, "num_kv_heads": 8}, {"repeat": 4, "sliding_window": 64}]
    )
    served = ModelConfig(spec=spec, max_model_len=4096)
    layout = layout_of(spec)
    assert layout == BlockLayout(16, 1, (LimitedGroup(4, 5, 133),))
    assert block_bytes(served, ideal_engine(), 1, layout) == 16 * 4 * (2 * 2 * 8 * 128)


# What is moved ----------------------------------------------------------------------------------


def test_the_bytes_of_a_sequence_are_those_of_what_it_keeps() -> None:
    """Windows and chunks move what they still attend to, states move whole, the rest all tokens."""
    per_layer = 2 * 2 * 32 * 128
    served = {spec.name: ModelConfig(spec=spec, max_model_len=4096) for spec in (GPT_OSS, LLAMA_4)}
    gpt_oss, llama_4 = served["gpt-oss-120b"], served["llama-4"]
    assert gpt_oss.sequence_kv().num_bytes(100) == 36 * 100 * per_layer
    assert gpt_oss.sequence_kv().num_bytes(5000) == 18 * (5000 + 128) * per_layer
    assert gpt_oss.sequence_kv().num_bytes(5000, 1600) == 18 * (3400 + 128) * per_layer
    assert llama_4.sequence_kv().num_bytes(8200) == (12 * 8200 + 36 * 8) * per_layer
    latent = {"kv_lora_rank": 512, "qk_rope_dim": 64, "qk_nope_dim": 128, "v_head_dim": 128}
    deepseek = ModelConfig(spec=llama_2_7b(num_layers=61, **latent), max_model_len=4096)
    assert deepseek.sequence_kv().num_bytes(1000) == 61 * 576 * 2 * 1000


# Degrees ----------------------------------------------------------------------------------------


def test_blocks_of_scales_are_not_cut() -> None:
    """Qwen3-235B-FP8 (case c11): a rank of eight would hold 192 columns, no multiple of 128."""
    spec = catalog.model("qwen3-235b-a22b")
    blockwise = ModelConfig(spec=spec, max_model_len=4096, weight_dtype="fp8-block")
    with pytest.raises(ConfigError) as caught:
        check_tp(blockwise, 8, key="strategy.nodg.tp_size")
    assert str(caught.value) == (
        "strategy.nodg.tp_size = 8: qwen3-235b-a22b has experts of width 1536: a GPU's share, 192, "
        "is no multiple of the 128-wide blocks that its fp8-block weights are scaled in. "
        "Use one of 1, 2, 4."
    )
    assert 8 in tp_degrees(ModelConfig(spec=spec, max_model_len=4096))
    assert 8 in tp_degrees(replace(blockwise, weight_dtype="fp8"))


def test_experts_too_narrow_to_share_are_refused() -> None:
    """A width that no rank can have an equal part of."""
    spec = llama_2_7b(num_heads=48, num_kv_heads=48, ffn_dim=1000)
    model = ModelConfig(spec=spec, max_model_len=4096)
    assert tp_degrees(model) == [1, 2, 4, 8]
    with pytest.raises(ConfigError, match="an MLP of width 1000"):
        check_tp(model, 3, key="tp_size")
