"""Weights and KV blocks against parameter counts, and messages that say the way out."""

from __future__ import annotations

from dataclasses import replace

import pytest

from simcluster.config import ModelConfig
from simcluster.errors import ConfigError
from simcluster.roofline import (
    check_tp,
    kv_blocks,
    kv_bytes_per_token_per_gpu,
    tp_degrees,
    weight_bytes_per_gpu,
)
from simcluster.specs import ModelSpec
from simcluster.testing.specs import a100, codellama_34b, llama_2_7b, vllm_engine


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
    latent = replace(codellama_34b(), kv_lora_rank=512, qk_rope_dim=64)
    assert kv_bytes_per_token_per_gpu(config(latent), 8) == 196_608


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
    model = config(replace(codellama_34b(), name="double", num_layers=96))
    with pytest.raises(ConfigError) as caught:
        kv_blocks(model, a100(), vllm_engine(), 1, key="strategy.tp_size")
    message = str(caught.value)
    assert message.startswith("strategy.tp_size = 1: double does not fit on A100-80GB SXM")
    assert "63.9 GB per GPU are missing" in message
    assert message.endswith("The smallest tensor-parallel degree that is enough is 2.")
    kv_blocks(model, a100(), vllm_engine(), 2, key="strategy.tp_size")


def test_a_model_too_large_for_any_degree_wants_another_gpu() -> None:
    """No degree is offered that would fail in turn."""
    small = replace(a100(), memory_bytes=1e9)
    with pytest.raises(ConfigError, match="Choose a GPU with more memory"):
        kv_blocks(config(codellama_34b()), small, vllm_engine(), 1, key="tp_size")


def test_a_pool_smaller_than_the_longest_sequence_is_refused() -> None:
    """Such an instance could never finish that sequence; both remedies offered must work."""
    spec = replace(llama_2_7b(), max_position=131_072)
    model = config(spec, max_model_len=120_000)
    with pytest.raises(ConfigError) as caught:
        kv_blocks(model, a100(), vllm_engine(), 1, key="tp_size")
    message = str(caught.value)
    fits = int(message.split("at most ")[1].split(".")[0])
    assert "max_model_len = 120000" in message
    assert "is enough is 2." in message
    kv_blocks(config(spec, max_model_len=fits), a100(), vllm_engine(), 1, key="tp_size")
    kv_blocks(model, a100(), vllm_engine(), 2, key="tp_size")


def test_degrees_divide_the_heads() -> None:
    """Llama-30B has 52 heads: 8 ranks cannot share them, 13 can."""
    spec = replace(llama_2_7b(), name="llama-30b", num_heads=52, num_kv_heads=52)
    assert tp_degrees(spec) == [1, 2, 4, 13, 26, 52]
    with pytest.raises(ConfigError, match="Use one of 1, 2, 4, 13, 26, 52"):
        check_tp(config(spec), 8, key="tp_size")


def test_kv_heads_are_split_or_replicated_evenly() -> None:
    """With 12 heads and 4 KV heads, 3 and 6 ranks would hold uneven shares."""
    spec = replace(llama_2_7b(), num_heads=12, num_kv_heads=4)
    assert tp_degrees(spec) == [1, 2, 4, 12]
