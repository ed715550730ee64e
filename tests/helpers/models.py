"""Models drawn for property tests: layers of any kind."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from simcluster.catalog.layers import ModelSpec
from simcluster.testing.specs import codellama_34b, llama_2_7b


@st.composite
def layers(draw: st.DrawFn) -> dict[str, Any]:
    """Keys of one layer: any mixer, any MLP."""
    mixer: dict[str, Any] = draw(
        st.sampled_from(
            [
                {},
                {"sliding_window": 256},
                {"num_kv_heads": 4, "output_gate": True},
                {"mixer": "gated-deltanet"},
                {"mixer": "mamba2", "state_bytes_per_number": 4.0},
                {"mixer": "none"},
            ]
        )
    )
    mlps: list[dict[str, Any]] = [{}, {"num_experts": 8, "shared_ffn_dim": 512}, {"mlp": "both"}]
    mlps[2] |= {"num_experts": 16, "moe_latent_dim": 256}
    if mixer.get("mixer") != "none":
        mlps.append({"mlp": "none"})
    return mixer | draw(st.sampled_from(mlps))


LAYER_KEYS: dict[str, Any] = {"num_experts_active": 2, "moe_ffn_dim": 2048}
LAYER_KEYS |= {"linear_key_heads": 8, "linear_key_dim": 64, "linear_heads": 16}
LAYER_KEYS |= {"linear_value_dim": 32, "conv_kernel": 4}
LATENT: dict[str, Any] = {"kv_lora_rank": 512, "qk_nope_dim": 128, "qk_rope_dim": 64}
LATENT |= {"v_head_dim": 128}
INDEX: dict[str, Any] = {"index_heads": 16, "index_head_dim": 128, "index_top_k": 256}


@st.composite
def models(draw: st.DrawFn) -> ModelSpec:
    """A small model of any of the shapes there are."""
    make = draw(st.sampled_from([codellama_34b, llama_2_7b]))
    common = {
        **LAYER_KEYS,
        "gated_mlp": draw(st.booleans()),
        "tied_embeddings": draw(st.booleans()),
    }
    if draw(st.booleans()):
        runs = draw(st.lists(layers(), min_size=0, max_size=5))
        # One layer at least attends to all.
        return make(**common, layers=[*runs, {"repeat": draw(st.integers(1, 4))}])
    latent = LATENT | {"q_lora_rank": draw(st.sampled_from([0, 768]))}
    latent |= draw(st.sampled_from([{}, INDEX]))
    chunked = {"attention_chunk": 200}
    kind = draw(st.sampled_from([{}, latent, chunked]))
    num_layers = draw(st.integers(1, 9))
    return make(**common, **kind, num_layers=num_layers)
