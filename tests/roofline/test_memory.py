"""Weights and KV blocks against parameter counts, and messages that say the way out."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simcluster.catalog.layers import ModelSpec
from simcluster.config import ModelConfig
from simcluster.errors import ConfigError
from simcluster.roofline import (
    check_tp,
    kv_blocks,
    kv_bytes_per_token_per_gpu,
    stage_layers,
    tp_degrees,
    weight_bytes_per_gpu,
)
from simcluster.testing.examples import examples
from simcluster.testing.specs import a100, codellama_34b, llama_2_7b, vllm_engine

LATENT: dict[str, object] = {"kv_lora_rank": 512, "qk_rope_dim": 64}
LATENT |= {"qk_nope_dim": 128, "v_head_dim": 128}
"""Keys of latent attention as DeepSeek has it."""


def config(spec: ModelSpec, max_model_len: int = 4096) -> ModelConfig:
    """Return `spec` in 16 bits."""
    return ModelConfig(spec=spec, max_model_len=max_model_len)


@pytest.mark.parametrize("spec", [codellama_34b(), llama_2_7b()])
@pytest.mark.parametrize("tp_size", [1, 2, 4, 8])
def test_the_weights_of_all_ranks_are_two_bytes_per_parameter(
    spec: ModelSpec, tp_size: int
) -> None:
    """Only norms are replicated at these degrees, less than 0.1 %."""
    total = weight_bytes_per_gpu(config(spec), tp_size) * tp_size
    assert total == pytest.approx(2 * spec.num_params, rel=0.01)


def test_replicated_kv_heads_take_memory_on_every_rank() -> None:
    """CodeLlama-34B at 16 ranks: one of 8 KV heads per rank, each of them twice."""
    model = config(codellama_34b())
    assert kv_bytes_per_token_per_gpu(model, 8) == 196_608 / 8
    assert kv_bytes_per_token_per_gpu(model, 16) == 196_608 / 8
    extra = weight_bytes_per_gpu(model, 16) * 16 - weight_bytes_per_gpu(model, 8) * 8
    assert extra == pytest.approx(48 * 2 * 2 * 8192 * 128 * 8, rel=0.01)


def test_the_latent_cache_is_on_every_rank() -> None:
    """Every head needs the whole latent vector, so parallelism does not shrink its cache."""
    latent = codellama_34b(**LATENT)
    assert kv_bytes_per_token_per_gpu(config(latent), 8) == 48 * 2 * 576


def test_blocks_are_what_is_left_of_the_engines_share() -> None:
    """Llama-2-7B on one A100: (0.9 x 80 - 13.48 - 2) GB at 8 MiB per block of 16 tokens."""
    blocks = kv_blocks(config(llama_2_7b()), a100(), vllm_engine(), 1, key="tp_size")
    assert blocks == int((0.9 * 80e9 - 2 * 6_738_415_616 - 2e9) // (16 * 524_288))


def test_more_ranks_hold_more_tokens() -> None:
    """Weights are shared out, so the pool grows faster than the degree."""
    model = config(codellama_34b())
    counts = [kv_blocks(model, a100(), vllm_engine(), t, key="tp_size") for t in (1, 2, 4, 8)]
    assert counts == sorted(counts)
    assert counts[1] > 2 * counts[0]


def test_a_model_too_large_is_refused_with_the_degree_that_fits() -> None:
    """The message is the way out: what is missing, and which degree holds it."""
    model = config(codellama_34b(name="double", num_layers=96))
    with pytest.raises(ConfigError) as caught:
        kv_blocks(model, a100(), vllm_engine(), 1, key="strategy.tp_size")
    message = str(caught.value)
    assert message.startswith("strategy.tp_size = 1: double does not fit on A100-80GB SXM")
    assert "63.9 GB per GPU are missing" in message
    assert caught.value.missing_bytes == pytest.approx(63.9e9, abs=0.05e9)
    assert message.endswith("Enough is tp_size x pp_size = 2 x 1 or 1 x 2.")
    kv_blocks(model, a100(), vllm_engine(), 2, key="strategy.tp_size")
    kv_blocks(model, a100(), vllm_engine(), 1, 2, key="strategy.tp_size")


def test_a_model_too_large_for_any_degree_wants_another_gpu() -> None:
    """No degree is offered that would fail in turn."""
    small = replace(a100(), memory_bytes=1e9)
    with pytest.raises(ConfigError, match="Choose a GPU with more memory"):
        kv_blocks(config(codellama_34b()), small, vllm_engine(), 1, key="tp_size")


def test_a_pool_smaller_than_the_longest_sequence_is_refused() -> None:
    """Such an instance could never finish that sequence; both remedies offered must work."""
    spec = llama_2_7b(max_position=131_072)
    model = config(spec, max_model_len=120_000)
    with pytest.raises(ConfigError) as caught:
        kv_blocks(model, a100(), vllm_engine(), 1, key="tp_size")
    message = str(caught.value)
    fits = int(message.split("at most ")[1].split(".")[0])
    assert "max_model_len = 120000" in message
    assert message.endswith("Enough is tp_size x pp_size = 2 x 1 or 1 x 2.")
    kv_blocks(config(spec, max_model_len=fits), a100(), vllm_engine(), 1, key="tp_size")
    kv_blocks(model, a100(), vllm_engine(), 2, key="tp_size")
    kv_blocks(model, a100(), vllm_engine(), 1, 2, key="tp_size")


def test_degrees_divide_the_heads() -> None:
    """Llama-30B has 52 heads: 8 ranks cannot share them; 13 could, but not the MLP of 11,008."""
    spec = llama_2_7b(name="llama-30b", num_heads=52, num_kv_heads=52)
    assert tp_degrees(config(spec)) == [1, 2, 4]
    with pytest.raises(ConfigError, match=r"Use one of 1, 2, 4\."):
        check_tp(config(spec), 8, key="tp_size")


def test_kv_heads_are_split_or_replicated_evenly() -> None:
    """With 12 heads and 4 KV heads, 3 and 6 ranks would hold uneven shares."""
    spec = llama_2_7b(num_heads=12, num_kv_heads=4, ffn_dim=12000)
    assert tp_degrees(config(spec)) == [1, 2, 4, 12]


# --- pipelines -----------------------------------------------------------------------------------


@given(
    st.sampled_from([codellama_34b(), llama_2_7b()]),
    st.sampled_from([1, 2, 4, 8, 16]),
    st.integers(1, 32),
    st.booleans(),
    st.sampled_from([None, "fp8", "int4"]),
)
@examples(100)
def test_the_stages_hold_the_weights_of_the_whole(
    spec: ModelSpec, tp_size: int, pp_size: int, tied: bool, weight_dtype: str | None
) -> None:
    """Each layer is in one stage; a tied LM head takes a copy of the embedding to the last one."""
    spec = replace(spec, tied_embeddings=tied)
    model = ModelConfig(spec=spec, max_model_len=4096, weight_dtype=weight_dtype)
    whole = weight_bytes_per_gpu(model, tp_size) * tp_size
    stages = [weight_bytes_per_gpu(model, tp_size, pp_size, stage) for stage in range(pp_size)]
    copy = 2 * spec.vocab_size * spec.hidden_size if tied and pp_size > 1 else 0
    assert sum(stages) * tp_size == pytest.approx(whole + copy, rel=1e-12)
    cached = [kv_bytes_per_token_per_gpu(model, tp_size, pp_size, s) for s in range(pp_size)]
    assert sum(cached) == pytest.approx(kv_bytes_per_token_per_gpu(model, tp_size), rel=1e-12)


@pytest.mark.parametrize("pp_size", [2, 3, 5])
def test_stages_of_a_model_are_two_bytes_per_parameter(pp_size: int) -> None:
    """Llama-2-7B: layers of 202 million parameters, 131 million each in embedding and head."""
    table, layer = 32000 * 4096, 4 * 4096**2 + 3 * 4096 * 11008 + 2 * 4096
    counts = stage_layers(32, pp_size)
    model = config(llama_2_7b())
    parameters = [count * layer for count in counts]
    parameters[0] += table
    parameters[-1] += table + 4096
    assert sum(parameters) == 6_738_415_616
    for stage, count in enumerate(parameters):
        assert weight_bytes_per_gpu(model, 1, pp_size, stage) == 2 * count


@pytest.mark.parametrize("pp_size", [2, 3, 5])
def test_the_stage_with_the_least_room_decides_on_the_blocks(pp_size: int) -> None:
    """Weights and cache of a stage count together: 16 KiB per token and layer of Llama-2-7B."""
    table, layer = 32000 * 4096, 4 * 4096**2 + 3 * 4096 * 11008 + 2 * 4096
    rooms = []
    for stage, count in enumerate(stage_layers(32, pp_size)):
        weights = 2 * (count * layer + (stage in (0, pp_size - 1)) * table)
        rooms.append((0.9 * 80e9 - weights - 2e9) // (16 * count * 16384))
    blocks = kv_blocks(config(llama_2_7b()), a100(), vllm_engine(), 1, pp_size, key="tp_size")
    assert blocks == min(rooms)


def test_the_latent_cache_shrinks_with_the_stages_only() -> None:
    """Every rank of a stage has the latent vectors of its layers, and of no others."""
    latent = codellama_34b(**LATENT)
    assert kv_bytes_per_token_per_gpu(config(latent), 8, 4, 1) == 12 * 2 * 576


@pytest.mark.parametrize(("tp_size", "pp_size"), [(1, 1), (1, 2), (2, 1), (4, 3)])
@pytest.mark.parametrize("memory_bytes", [2e9, 5e9, 10e9, 24e9])
@pytest.mark.parametrize("max_model_len", [4096, 16384])
def test_the_degrees_a_message_names_are_the_smallest_that_fit(
    tp_size: int, pp_size: int, memory_bytes: float, max_model_len: int
) -> None:
    """Found by trying all: a larger degree of one kind, else the fewest GPUs."""
    gpu = replace(a100(), memory_bytes=memory_bytes)
    engine = replace(vllm_engine(), reserved_bytes=0.5e9)
    model = config(codellama_34b(), max_model_len)

    def refusal(t: int, p: int) -> str | None:
        try:
            kv_blocks(model, gpu, engine, t, p, key="strategy.x.tp_size")
        except ConfigError as error:
            return str(error)
        return None

    message = refusal(tp_size, pp_size)
    if message is None:
        return
    assert message.startswith(f"strategy.x.tp_size = {tp_size}: ")
    named = [(int(t), int(p)) for t, p in re.findall(r"(\d+) x (\d+)", message)]
    wider = [(t, pp_size) for t in tp_degrees(model) if t > tp_size]
    deeper = [(tp_size, p) for p in range(pp_size + 1, 49)]
    expected = [
        next((pair for pair in pairs if refusal(*pair) is None), None) for pairs in (wider, deeper)
    ]
    if expected == [None, None]:
        pairs = [(t, p) for t in tp_degrees(model) for p in range(1, 49)]
        pairs.sort(key=lambda pair: (pair[0] * pair[1], -pair[0]))
        expected = [next(pair for pair in pairs if refusal(*pair) is None)]
    assert named == [pair for pair in expected if pair is not None]


def test_a_stage_that_does_not_fit_is_named() -> None:
    """CodeLlama-34B in two halves of 34 GB does not fit on 24 GB; the heavier one is the last."""
    small = replace(a100(), memory_bytes=24e9)
    with pytest.raises(ConfigError) as caught:
        kv_blocks(config(codellama_34b()), small, vllm_engine(), 1, 2, key="tp_size")
    message = str(caught.value)
    assert "codellama-34b with pp_size = 2 does not fit on A100-80GB SXM: 33.7 GB" in message
    assert "of weights in stage 2 and" in message


@pytest.mark.parametrize("pp_size", [0, 33])
def test_more_stages_than_layers_are_refused(pp_size: int) -> None:
    """The key of the message is that of the pipeline."""
    rule = rf"^strategy\.x\.pp_size = {pp_size}: .* 32 layers.* Use 1 to 32\.$"
    with pytest.raises(ConfigError, match=rule):
        kv_blocks(config(llama_2_7b()), a100(), vllm_engine(), 1, pp_size, key="strategy.x.tp_size")
