"""FLOPs and bytes of the operators against parameter counts and hand counts."""

from __future__ import annotations

from dataclasses import replace

import pytest

from simcluster.catalog.layers import DenseMlp, Experts, ModelSpec, Reach
from simcluster.config import ModelConfig
from simcluster.roofline.operators import (
    AttentionWork,
    Operator,
    attention_work,
    embedding_operators,
    experts_touched,
    head_operators,
    layer_operators,
    layer_runs,
)
from simcluster.testing.specs import codellama_34b, llama_2_7b


def config(spec: ModelSpec, **kwargs: str) -> ModelConfig:
    """Return `spec`, in 16 bits unless said otherwise."""
    return ModelConfig(spec=spec, max_model_len=4096, **kwargs)


def first_layer(spec: ModelSpec, tp_size: int, num_tokens: int) -> list[Operator]:
    """Operators of the first layer."""
    return layer_operators(config(spec), spec.layers[0].layer, tp_size, num_tokens)


def attention_of(spec: ModelSpec, tp_size: int, **kwargs: str) -> AttentionWork:
    """Work of the first layer's attention."""
    return attention_work(config(spec, **kwargs), spec.attentions[0], tp_size)


def mixtral() -> ModelSpec:
    """Mixtral-8x7B (published config.json): 46.70e9 parameters, 12.88e9 active."""
    return codellama_34b(
        name="mixtral-8x7b",
        num_layers=32,
        hidden_size=4096,
        num_heads=32,
        ffn_dim=14336,
        num_experts=8,
        num_experts_active=2,
        moe_ffn_dim=14336,
        num_dense_layers=0,
        num_params=46_702_792_704,
        kv_bytes_per_token=131_072,
    )


def deepseek_v3(q_lora_rank: int = 1536) -> ModelSpec:
    """DeepSeek-V3 (published config.json): 671.0e9 parameters, 70272 bytes of KV per token."""
    return codellama_34b(
        name="deepseek-v3",
        num_layers=61,
        hidden_size=7168,
        num_heads=128,
        num_kv_heads=128,
        ffn_dim=18432,
        vocab_size=129280,
        num_experts=256,
        num_experts_active=8,
        moe_ffn_dim=2048,
        num_shared_experts=1,
        num_dense_layers=3,
        q_lora_rank=q_lora_rank,
        kv_lora_rank=512,
        qk_nope_dim=128,
        qk_rope_dim=64,
        v_head_dim=128,
        kv_bytes_per_token=70_272,
    )


def all_operators(model: ModelConfig, tp_size: int, m: int, sampled: int) -> list[Operator]:
    """Every operator of a forward pass, layer by layer."""
    operators = embedding_operators(model, tp_size, m)
    for layer, repeat in layer_runs(model.spec):
        operators += layer_operators(model, layer, tp_size, m) * repeat
    return operators + head_operators(model, tp_size, m, sampled)


@pytest.mark.parametrize("spec", [codellama_34b(), llama_2_7b()])
def test_a_dense_forward_pass_takes_two_flops_per_parameter_and_token(spec: ModelSpec) -> None:
    """The classical count 2 x parameters x tokens, without the embedding, which multiplies none."""
    m = 100
    flops = sum(op.flops for op in all_operators(config(spec), 1, m, m) if op.kind == "gemm")
    params = spec.num_params - spec.vocab_size * spec.hidden_size
    assert flops == pytest.approx(2 * params * m, rel=1e-3)


def test_a_mixture_of_experts_computes_with_its_active_parameters_only() -> None:
    """Mixtral has 12.88e9 active parameters, 0.13e9 of them in the embedding."""
    spec = mixtral()
    flops = sum(op.flops for op in all_operators(config(spec), 1, 10, 10) if op.kind == "gemm")
    assert flops / 20 == pytest.approx(12.88e9 - spec.vocab_size * spec.hidden_size, rel=2e-3)


@pytest.mark.parametrize("spec", [codellama_34b(), llama_2_7b(), mixtral(), deepseek_v3()])
def test_resident_weights_are_the_parameters(spec: ModelSpec) -> None:
    """Operators own all weights once: they are the published parameter count."""
    weights = sum(op.weights for op in all_operators(config(spec), 1, 1, 1))
    assert weights == pytest.approx(spec.num_params, rel=1e-3)


def test_a_tied_head_has_no_weights_of_its_own_but_reads_them() -> None:
    """Tying saves memory, not traffic."""
    spec = llama_2_7b()
    untied = all_operators(config(spec), 1, 1, 1)
    tied = all_operators(config(replace(spec, tied_embeddings=True)), 1, 1, 1)
    table = spec.vocab_size * spec.hidden_size
    assert sum(op.weights for op in untied) - sum(op.weights for op in tied) == table
    assert sum(op.bytes for op in untied) == sum(op.bytes for op in tied)


@pytest.mark.parametrize("spec", [codellama_34b(), llama_2_7b(), mixtral()])
@pytest.mark.parametrize("tp_size", [2, 4, 8])
def test_ranks_share_the_multiplications_evenly(spec: ModelSpec, tp_size: int) -> None:
    """Splitting loses no FLOPs (the router is small and replicated)."""

    def gemm_flops(t: int) -> float:
        return sum(op.flops for op in all_operators(config(spec), t, 64, 8) if op.kind == "gemm")

    assert gemm_flops(tp_size) * tp_size == pytest.approx(gemm_flops(1), rel=1e-3)


def test_a_single_decode_reads_every_weight_of_the_layers_once() -> None:
    """At one token the traffic of the multiplications is the weights, activations aside."""
    spec = codellama_34b()
    operators = first_layer(spec, 1, 1)
    read = sum(op.bytes for op in operators if op.kind == "gemm")
    assert read == pytest.approx(2 * sum(op.weights for op in operators), rel=1e-3)


@pytest.mark.parametrize("spec", [codellama_34b(), llama_2_7b(), deepseek_v3()])
def test_decode_attention_reads_the_cache_of_each_token_once(spec: ModelSpec) -> None:
    """Over all layers that is the KV bytes per token that the catalogue gives."""
    work = attention_of(spec, 1)
    assert work.decode_kv_bytes * spec.num_layers == spec.kv_bytes_per_token
    half = attention_of(spec, 1, kv_dtype="fp8")
    assert half.decode_kv_bytes * 2 == work.decode_kv_bytes


@pytest.mark.parametrize(("tp_size", "heads"), [(1, 8), (4, 2), (8, 1), (16, 1), (64, 1)])
def test_kv_heads_are_split_then_replicated(tp_size: int, heads: int) -> None:
    """A rank holds one KV head at least, so traffic stops shrinking there."""
    work = attention_of(codellama_34b(), tp_size)
    assert work.kv_heads == heads
    assert work.decode_kv_bytes == 2 * 2 * heads * 128


def test_the_table_of_a_llama_layer() -> None:
    """Rows of the published operator table (BestServe class), counted by hand; t = 2, m = 10."""
    spec, m, t = llama_2_7b(), 10, 2
    operators = {op.name: op for op in first_layer(spec, t, m)}
    assert list(operators) == [
        "input_norm",
        "qkv_proj",
        "rope",
        "kv_write",
        "attention",
        "o_proj",
        "attention_all_reduce",
        "post_norm",
        "up_proj",
        "activation",
        "down_proj",
        "mlp_all_reduce",
    ]
    h, f = 4096, 11008
    assert operators["qkv_proj"].flops == 2 * m * h * 3 * h / t
    assert operators["qkv_proj"].bytes == 2 * (h * 3 * h / t + m * h + m * 3 * h / t)
    assert operators["rope"].bytes == 2 * 2 * m * 2 * h / t
    assert operators["kv_write"].bytes == 2 * (2 + 2) * m * h / t
    assert operators["up_proj"].flops == 4 * m * h * f / t
    assert operators["activation"].bytes == 3 * 2 * m * f / t
    assert operators["down_proj"].bytes == 2 * (f * h / t + m * f / t + m * h)
    assert operators["mlp_all_reduce"].bytes == 2 * m * h


def test_an_mlp_without_gate_has_two_matrices() -> None:
    """Two matrices of ffn_dim instead of three."""
    spec = llama_2_7b()
    plain = replace(spec, gated_mlp=False)
    gated_up = first_layer(spec, 1, 1)[7]
    plain_up = first_layer(plain, 1, 1)[7]
    assert gated_up.name == plain_up.name == "up_proj"
    assert gated_up.weights == 2 * plain_up.weights


def test_experts_touched_counts_distinct_experts() -> None:
    """Two tokens, two of eight each: the second finds a given expert taken with chance 1/4."""
    assert experts_touched(8, 2, 1) == pytest.approx(2)
    assert experts_touched(8, 2, 2) == pytest.approx(2 + 2 * (1 - 2 / 8))
    assert experts_touched(8, 2, 10_000) == pytest.approx(8)
    assert experts_touched(4, 4, 1) == 4


def test_few_tokens_read_few_experts() -> None:
    """One token reads the weights of two experts, a prefill those of all eight."""
    spec = mixtral()

    def expert_bytes(m: int) -> float:
        operators = first_layer(spec, 1, m)
        return sum(op.bytes for op in operators if op.name.startswith("experts_up"))

    one = 2 * 2 * 2 * 4096 * 14336
    assert expert_bytes(1) == pytest.approx(one, rel=1e-3)
    assert expert_bytes(4096) > 4 * one


def test_latent_attention_decodes_in_absorbed_form() -> None:
    """DeepSeek-V3: each head multiplies the query with 576 numbers and the weights with 512."""
    work = attention_of(deepseek_v3(), 8)
    assert work.decode_flops == 2 * 16 * (576 + 512)
    assert work.decode_kv_bytes == 2 * 576
    assert work.prefill_flops == 2 * 16 * (128 + 64 + 128)


def test_latent_attention_without_query_compression_has_one_projection_less() -> None:
    """DeepSeek-V2-Lite has no query rank; its query comes straight from the hidden state."""
    spec = deepseek_v3(q_lora_rank=0)
    names = [op.name for op in first_layer(spec, 1, 1)]
    assert "q_b_proj" not in names
    assert "kv_b_proj" in names


def test_8_bit_weights_halve_the_layers_but_not_embedding_and_head() -> None:
    """Engines leave the tables in 16 bits: 13 % of an 8B model of today."""
    spec = llama_2_7b()
    operators = all_operators(config(spec, weight_dtype="fp8"), 1, 1, 1)
    stored = sum(op.weights * op.weight_bytes for op in operators)
    tables = 2 * spec.vocab_size * spec.hidden_size
    assert stored == pytest.approx(spec.num_params + tables, rel=1e-3)


def test_only_sampled_tokens_meet_the_head() -> None:
    """A chunk that ends no prompt has no head at all."""
    model = config(codellama_34b())
    none, one, many = (head_operators(model, 2, 512, s) for s in (0, 1, 16))
    assert [op.name for op in none] == ["final_norm"]
    assert many[1].flops == 16 * one[1].flops
    assert many[2].bytes == 16 * 32000 * 2


def test_layer_runs_group_equal_layers_in_order() -> None:
    """The closed form works on runs of equal layers."""
    assert [repeat for _, repeat in layer_runs(codellama_34b())] == [48]
    (dense, three), (moe, rest) = layer_runs(deepseek_v3())
    assert (three, rest) == (3, 58)
    assert dense.mlps == (DenseMlp(18432),)
    assert moe.mlps == (Experts(256, 8, 2048, 2048),)
    half = codellama_34b(layers=[{"repeat": 24, "of": [{"sliding_window": 1024}, {}]}])
    reaches = [layer.mixer and layer.mixer.reach for layer, _ in layer_runs(half)]
    assert reaches == [Reach(1024), None] * 24
