"""Models that hypothesis draws."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import strategies as st

from simcluster.catalog.specs import ModelSpec
from simcluster.testing.specs import codellama_34b, llama_2_7b


@st.composite
def models(draw: st.DrawFn) -> ModelSpec:
    """A small model of any of the shapes there are."""
    num_layers = draw(st.integers(1, 9))
    spec = replace(
        draw(st.sampled_from([codellama_34b(), llama_2_7b()])),
        num_layers=num_layers,
        num_dense_layers=num_layers,
        num_kv_heads=draw(st.sampled_from([1, 4, 32])),
        gated_mlp=draw(st.booleans()),
        tied_embeddings=draw(st.booleans()),
    )
    if draw(st.booleans()):
        spec = replace(
            spec,
            num_experts=8,
            num_experts_active=2,
            moe_ffn_dim=2048,
            num_shared_experts=draw(st.integers(0, 1)),
            num_dense_layers=draw(st.integers(0, num_layers)),
        )
    if draw(st.booleans()):
        spec = replace(
            spec, sliding_window=256, num_sliding_layers=draw(st.integers(1, num_layers))
        )
    elif draw(st.booleans()):
        spec = replace(
            spec,
            q_lora_rank=draw(st.sampled_from([0, 768])),
            kv_lora_rank=512,
            qk_nope_dim=128,
            qk_rope_dim=64,
            v_head_dim=128,
        )
    return spec
