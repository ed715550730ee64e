"""Files of published models give their published sizes: parameters, checkpoint, cache of a token.

Each file holds the keys of the published one that say something about the shape or the dtypes.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from simcluster.catalog import config_json
from simcluster.config import ModelConfig

Config = dict[str, Any]


def llama(
    layers: int, hidden: int, heads: int, kv: int, ffn: int, vocab: int, **more: object
) -> Config:
    """Return the keys that most files have; `ffn` 0 for none."""
    keys = {
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "num_attention_heads": heads,
        "num_key_value_heads": kv,
        "intermediate_size": ffn or None,
        "vocab_size": vocab,
        "max_position_embeddings": 131072,
    }
    return {**keys, **more}


def of(architecture: str, config: Config) -> Config:
    """Return a file of an architecture."""
    return {"architectures": [architecture], **config}


def with_text(architecture: str, config: Config, **beside: object) -> Config:
    """Return a file of a model that also sees, its text part inside."""
    return {"architectures": [architecture], "text_config": config, "vision_config": {}, **beside}


BLOCKS = {"quant_method": "fp8", "weight_block_size": [128, 128]}
QWEN3 = {"head_dim": 128}
DELTA = {
    "linear_num_key_heads": 16,
    "linear_num_value_heads": 32,
    "linear_key_head_dim": 128,
    "linear_value_head_dim": 128,
    "full_attention_interval": 4,
    "head_dim": 256,
}
MLA = {"kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128}
GEMMA3 = {"model_type": "gemma3_text", "head_dim": 256, "sliding_window": 1024}
MAMBA = {"head_dim": 128, "n_groups": 8, "conv_kernel": 4, "mamba_head_dim": 64}
NANO = "MEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEMEM*EMEMEMEME"
SUPER = "MEMEMEM*" + "EMEMEMEM*" * 2 + "EMEMEMEMEM*" * 4 + "EMEMEMEM*" + "EMEMEMEME"
H56 = "M-M-M-M*-" + "M-M-M-M-M*-" * 9 + "M-M-M-M-M-"


def sparse(pattern: str) -> list[int]:
    """Return the marks of a pattern of 0 and 1."""
    return [int(mark) for mark in pattern]


PUBLISHED: dict[str, tuple[Config, float, int | None, str]] = {
    "llama-3.1-8b": (
        of("LlamaForCausalLM", llama(32, 4096, 32, 8, 14336, 128256)),
        8.03,
        131_072,
        "model card: 8.03 B",
    ),
    "llama-3.1-70b": (
        of("LlamaForCausalLM", llama(80, 8192, 64, 8, 28672, 128256)),
        70.6,
        327_680,
        "model card: 70.6 B",
    ),
    "llama-3.1-405b": (
        of("LlamaForCausalLM", llama(126, 16384, 128, 8, 53248, 128256)),
        405,
        516_096,
        "arXiv 2407.21783, table 3; cache: arXiv 2505.09343, table 1",
    ),
    "mistral-large-2407": (
        of("MistralForCausalLM", llama(88, 12288, 96, 8, 28672, 32768, head_dim=128)),
        123,
        None,
        "model card: 123 B",
    ),
    "mistral-small-3.1": (
        with_text(
            "Mistral3ForConditionalGeneration",
            llama(40, 5120, 32, 8, 32768, 131072, head_dim=128, model_type="mistral"),
        ),
        23.6,
        163_840,
        "model card of its text model, Mistral Small 3: 23.6 B",
    ),
    "mixtral-8x22b": (
        of(
            "MixtralForCausalLM",
            llama(56, 6144, 48, 8, 16384, 32000, num_local_experts=8, num_experts_per_tok=2),
        ),
        141,
        None,
        "announcement: 141 B, 39 B active",
    ),
    "llama-4-maverick": (
        with_text(
            "Llama4ForConditionalGeneration",
            llama(
                48,
                5120,
                40,
                8,
                8192,
                202048,
                intermediate_size_mlp=16384,
                num_local_experts=128,
                num_experts_per_tok=1,
                interleave_moe_layer_step=2,
                attention_chunk_size=8192,
            ),
        ),
        400,
        196_608,
        "model card: 400 B",
    ),
    "gemma-3-1b": (
        of(
            "Gemma3ForCausalLM",
            llama(26, 1152, 4, 1, 6912, 262144, head_dim=256, sliding_window=512),
        ),
        1.000,
        26_624,
        "arXiv 2503.19786, table 1: 302 + 698 M",
    ),
    "gemma-3-4b": (
        with_text(
            "Gemma3ForConditionalGeneration",
            {"num_hidden_layers": 34, "hidden_size": 2560, "intermediate_size": 10240, **GEMMA3},
        ),
        3.884,
        None,
        "arXiv 2503.19786, table 1: 675 + 3209 M",
    ),
    "gemma-3-12b": (
        with_text(
            "Gemma3ForConditionalGeneration",
            llama(48, 3840, 16, 8, 15360, 262208, **GEMMA3),
        ),
        11.771,
        None,
        "arXiv 2503.19786, table 1: 1012 + 10759 M",
    ),
    "gemma-3-27b": (
        with_text(
            "Gemma3ForConditionalGeneration",
            {
                "num_hidden_layers": 62,
                "hidden_size": 5376,
                "num_attention_heads": 32,
                "num_key_value_heads": 16,
                "intermediate_size": 21504,
                **GEMMA3,
                "head_dim": 128,
            },
        ),
        27.016,
        507_904,
        "arXiv 2503.19786, table 1: 1416 + 25600 M",
    ),
    "qwen2.5-vl-7b": (
        {
            "architectures": ["Qwen2_5_VLForConditionalGeneration"],
            **llama(28, 3584, 28, 4, 18944, 152064, tie_word_embeddings=False),
        },
        7.62,
        57_344,
        "model card of its text model, Qwen2.5-7B: 7.61 B",
    ),
    "qwen2-vl-72b": (
        of("Qwen2VLForConditionalGeneration", llama(80, 8192, 64, 8, 29568, 152064)),
        72.7,
        327_680,
        "model card of its text model, Qwen2-72B: 72.7 B",
    ),
    "qwen3-4b": (
        of(
            "Qwen3ForCausalLM",
            llama(36, 2560, 32, 8, 9728, 151936, tie_word_embeddings=True, **QWEN3),
        ),
        4.0,
        147_456,
        "model card: 4.0 B",
    ),
    "qwen3-32b": (
        of("Qwen3ForCausalLM", llama(64, 5120, 64, 8, 25600, 151936, **QWEN3)),
        32.8,
        262_144,
        "model card: 32.8 B",
    ),
    "qwen3-30b-a3b": (
        of(
            "Qwen3MoeForCausalLM",
            llama(
                48,
                2048,
                32,
                4,
                6144,
                151936,
                **QWEN3,
                num_experts=128,
                num_experts_per_tok=8,
                moe_intermediate_size=768,
            ),
        ),
        30.5,
        98_304,
        "model card: 30.5 B",
    ),
    "qwen3-coder-480b": (
        of(
            "Qwen3MoeForCausalLM",
            llama(
                62,
                6144,
                96,
                8,
                8192,
                151936,
                **QWEN3,
                num_experts=160,
                num_experts_per_tok=8,
                moe_intermediate_size=2560,
            ),
        ),
        480,
        253_952,
        "model card: 480 B",
    ),
    "qwen3-vl-32b": (
        with_text(
            "Qwen3VLForConditionalGeneration", llama(64, 5120, 64, 8, 25600, 151936, **QWEN3)
        ),
        32.8,
        262_144,
        "model card of its text model, Qwen3-32B: 32.8 B",
    ),
    "qwen3-vl-235b-a22b": (
        with_text(
            "Qwen3VLMoeForConditionalGeneration",
            llama(
                94,
                4096,
                64,
                4,
                12288,
                151936,
                **QWEN3,
                num_experts=128,
                num_experts_per_tok=8,
                moe_intermediate_size=1536,
            ),
        ),
        235,
        192_512,
        "model card of its text model, Qwen3-235B-A22B: 235 B",
    ),
    "qwen3-next-80b": (
        of(
            "Qwen3NextForCausalLM",
            llama(
                48,
                2048,
                16,
                2,
                5120,
                151936,
                **DELTA,
                num_experts=512,
                num_experts_per_tok=10,
                moe_intermediate_size=512,
                shared_expert_intermediate_size=512,
            ),
        ),
        80,
        24_576,
        "model card: 80 B; 12 layers of full attention",
    ),
    "qwen3.5-27b": (
        with_text(
            "Qwen3_5ForConditionalGeneration",
            llama(64, 5120, 24, 4, 17408, 248320, **DELTA | {"linear_num_value_heads": 48}),
        ),
        27,
        65_536,
        "name: 27 B",
    ),
    "qwen3.5-397b-a17b": (
        with_text(
            "Qwen3_5MoeForConditionalGeneration",
            llama(
                60,
                4096,
                32,
                2,
                0,
                248320,
                **DELTA | {"linear_num_value_heads": 64},
                num_experts=512,
                num_experts_per_tok=10,
                moe_intermediate_size=1024,
                shared_expert_intermediate_size=1024,
            ),
        ),
        397,
        30_720,
        "name: 397 B",
    ),
    "deepseek-v2-lite": (
        of(
            "DeepseekV2ForCausalLM",
            llama(
                27,
                2048,
                16,
                16,
                10944,
                102400,
                **MLA,
                n_routed_experts=64,
                n_shared_experts=2,
                num_experts_per_tok=6,
                moe_intermediate_size=1408,
                first_k_dense_replace=1,
            ),
        ),
        15.7,
        31_104,
        "arXiv 2405.04434, appendix B: 15.7 B",
    ),
    "deepseek-v3.2": (
        of(
            "DeepseekV32ForCausalLM",
            llama(
                61,
                7168,
                128,
                128,
                18432,
                129280,
                **MLA,
                q_lora_rank=1536,
                n_routed_experts=256,
                n_shared_experts=1,
                num_experts_per_tok=8,
                moe_intermediate_size=2048,
                first_k_dense_replace=3,
                index_n_heads=64,
                index_head_dim=128,
                index_topk=2048,
                quantization_config=BLOCKS,
            ),
        ),
        671,
        70_272,
        "that of DeepSeek-V3 and an index; cache without it: arXiv 2505.09343, table 1",
    ),
    "kimi-k2.5": (
        with_text(
            "KimiK25ForConditionalGeneration",
            llama(
                61,
                7168,
                64,
                64,
                18432,
                163840,
                **MLA,
                architectures=["DeepseekV3ForCausalLM"],
                q_lora_rank=1536,
                n_routed_experts=384,
                n_shared_experts=1,
                num_experts_per_tok=8,
                moe_intermediate_size=2048,
                first_k_dense_replace=1,
            ),
        ),
        1026,
        70_272,
        "tensors of moonshotai/Kimi-K2-Instruct: 1,026 B (arXiv 2507.20534 says 1.04 T)",
    ),
    "glm-4.5": (
        of(
            "Glm4MoeForCausalLM",
            llama(
                92,
                5120,
                96,
                8,
                12288,
                151552,
                head_dim=128,
                n_routed_experts=160,
                n_shared_experts=1,
                num_experts_per_tok=8,
                moe_intermediate_size=1536,
                first_k_dense_replace=3,
            ),
        ),
        355,
        376_832,
        "arXiv 2508.06471, table 1: 355 B",
    ),
    "glm-4.5-air": (
        of(
            "Glm4MoeForCausalLM",
            llama(
                46,
                4096,
                96,
                8,
                10944,
                151552,
                head_dim=128,
                n_routed_experts=128,
                n_shared_experts=1,
                num_experts_per_tok=8,
                moe_intermediate_size=1408,
                first_k_dense_replace=1,
            ),
        ),
        106,
        188_416,
        "arXiv 2508.06471, table 1: 106 B",
    ),
    "glm-5": (
        of(
            "GlmMoeDsaForCausalLM",
            llama(
                78,
                6144,
                64,
                64,
                12288,
                154880,
                **MLA | {"qk_nope_head_dim": 192, "v_head_dim": 256},
                q_lora_rank=2048,
                n_routed_experts=256,
                n_shared_experts=1,
                num_experts_per_tok=8,
                moe_intermediate_size=2048,
                first_k_dense_replace=3,
                index_n_heads=32,
                index_head_dim=128,
                index_topk=2048,
            ),
        ),
        744,
        89_856,
        "model card: 744 B",
    ),
    "minimax-m2": (
        of(
            "MiniMaxM2ForCausalLM",
            llama(
                62,
                3072,
                48,
                8,
                1536,
                200064,
                head_dim=128,
                num_local_experts=256,
                num_experts_per_tok=8,
            ),
        ),
        230,
        253_952,
        "model card: 230 B",
    ),
    "mimo-7b": (
        of("MiMoForCausalLM", llama(36, 4096, 32, 8, 11008, 151680, head_dim=128)),
        7.61,
        147_456,
        "tensors of XiaomiMiMo/MiMo-7B-Base without its prediction layer: 7.61 B",
    ),
    "mimo-v2-flash": (
        of(
            "MiMoV2FlashForCausalLM",
            llama(
                48,
                4096,
                64,
                4,
                16384,
                152576,
                head_dim=192,
                v_head_dim=128,
                sliding_window=128,
                swa_num_key_value_heads=8,
                hybrid_layer_pattern=sparse("0" + "1" * 4 + ("0" + "1" * 5) * 7 + "0"),
                moe_layer_freq=sparse("0" + "1" * 47),
                n_routed_experts=256,
                num_experts_per_tok=8,
                moe_intermediate_size=2048,
            ),
        ),
        309,
        None,
        "model card: 309 B",
    ),
    "step-3.5-flash": (
        of(
            "Step3p7FlashForCausalLM",
            llama(
                45,
                4096,
                64,
                8,
                11264,
                128896,
                head_dim=128,
                sliding_window=512,
                layer_types=(["full_attention"] + ["sliding_attention"] * 3) * 11
                + ["full_attention"],
                num_experts=288,
                num_experts_per_tok=8,
                moe_intermediate_size=1280,
                share_expert_dim=1280,
                first_k_dense_replace=3,
            ),
        ),
        196,
        184_320,
        "model card: 196 B",
    ),
    "nemotron-3-nano": (
        of(
            "NemotronHForCausalLM",
            llama(
                52,
                2688,
                32,
                2,
                1856,
                131072,
                **MAMBA,
                hybrid_override_pattern=NANO,
                mamba_num_heads=64,
                ssm_state_size=128,
                n_routed_experts=128,
                n_shared_experts=1,
                num_experts_per_tok=6,
                moe_intermediate_size=1856,
                moe_shared_expert_intermediate_size=3712,
            ),
        ),
        31.6,
        6_144,
        "arXiv 2512.20848: 31.6 B; six layers of attention",
    ),
    "nemotron-3-super": (
        of(
            "NemotronHForCausalLM",
            llama(
                88,
                4096,
                32,
                2,
                2688,
                131072,
                **MAMBA,
                hybrid_override_pattern=SUPER,
                mamba_num_heads=128,
                ssm_state_size=128,
                n_routed_experts=512,
                n_shared_experts=1,
                num_experts_per_tok=22,
                moe_intermediate_size=2688,
                moe_shared_expert_intermediate_size=5376,
                moe_latent_size=1024,
            ),
        ),
        120.6,
        8_192,
        "model card: 120.6 B",
    ),
    "nemotron-h-56b": (
        of(
            "NemotronHForCausalLM",
            llama(
                118,
                8192,
                64,
                8,
                32768,
                131072,
                **MAMBA,
                hybrid_override_pattern=H56,
                mamba_num_heads=256,
                ssm_state_size=256,
            ),
        ),
        56,
        40_960,
        "arXiv 2504.03624: 56 B, ten layers of attention",
    ),
    "gpt-oss-20b": (
        of(
            "GptOssForCausalLM",
            llama(
                24,
                2880,
                64,
                8,
                2880,
                201088,
                head_dim=64,
                sliding_window=128,
                num_local_experts=32,
                num_experts_per_tok=4,
            ),
        ),
        20.91,
        49_152,
        "arXiv 2508.10925, table 1: 20.91 B",
    ),
    "command-r7b": (
        of(
            "Cohere2ForCausalLM",
            llama(32, 4096, 32, 8, 14336, 256000, sliding_window=4096, tie_word_embeddings=True),
        ),
        8.03,
        131_072,
        "tensors of CohereLabs/c4ai-command-r7b-12-2024: 8.03 B",
    ),
    "gemma-4-31b": (
        with_text(
            "Gemma4ForConditionalGeneration",
            llama(
                60,
                5376,
                32,
                16,
                21504,
                262144,
                head_dim=256,
                global_head_dim=512,
                num_global_key_value_heads=4,
                attention_k_eq_v=True,
                sliding_window=1024,
                layer_types=(["sliding_attention"] * 5 + ["full_attention"]) * 10,
                tie_word_embeddings=True,
            ),
        ),
        30.7,
        901_120,
        "model card: 30.7 B",
    ),
}
"""File, parameters (billions), 16-bit cache of a token over all layers (bytes), and the source."""


@pytest.mark.parametrize("name", PUBLISHED)
def test_files_give_the_published_parameters_and_cache(name: str, tmp_path: Path) -> None:
    """Within 1 % of what the source says."""
    config, billions, cached, source = PUBLISHED[name]
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config))
    spec = config_json.model(path)
    assert spec.num_params / 1e9 == pytest.approx(billions, rel=0.01), source
    if cached is not None:
        assert spec.kv_bytes_per_token == cached, source
    images = "text_config" in config or "VL" in config["architectures"][0]
    assert bool(spec.notes) == images


def test_at_least_thirty_published_models_are_checked() -> None:
    """With those of the catalogue they are more than seventy."""
    assert len(PUBLISHED) >= 30


NOTHING_ELSE = ["lm_head", "re:.*self_attn.*", "re:.*shared_experts.*"]
INT4 = {"num_bits": 4, "type": "int", "group_size": 32, "strategy": "group"}
GROUP = {"weights": INT4, "targets": ["Linear"]}
DENSE = "re:.*mlp\\.(gate|up|gate_up|down)_proj.*"
BAD_MODULES = [f"model.layers.{i}.self_attn" for i in range(61)]

CHECKPOINTS: dict[str, tuple[str, Config, float, str | None, str]] = {
    # 32.8 B parameters, embedding and head (1.56 B) in 16 bits.
    "fp8 by blocks": ("qwen3-32b", BLOCKS, 34.33, None, "Qwen/Qwen3-32B-FP8: 34.3 GB"),
    "modelopt fp8": (
        "llama-3.1-70b",
        {"quant_algo": "FP8", "kv_cache_quant_algo": "FP8", "exclude_modules": ["lm_head"]},
        72.7,
        "fp8",
        "nvidia/Llama-3.1-70B-Instruct-FP8: 72.7 GB",
    ),
    "gptq": (
        "llama-3.1-70b",
        {"quant_method": "gptq", "bits": 4, "group_size": 128},
        39.8,
        None,
        "hugging-quants/Meta-Llama-3.1-70B-Instruct-GPTQ-INT4: 39.8 GB",
    ),
    "awq": (
        "llama-3.1-8b",
        {"quant_method": "awq", "bits": 4, "group_size": 128},
        5.73,
        None,
        "hugging-quants/Meta-Llama-3.1-8B-Instruct-AWQ-INT4: 5.73 GB",
    ),
    "int8": (
        "llama-3.1-8b",
        {
            "quant_method": "compressed-tensors",
            "config_groups": {"group_0": {"weights": {"num_bits": 8, "type": "int"}}},
            "ignore": ["lm_head"],
        },
        9.08,
        None,
        "neuralmagic/Meta-Llama-3.1-8B-Instruct-quantized.w8a8: 9.08 GB",
    ),
    # Experts in 4 bits by 32, all else in 16: 1015 B x 0.5625 + 11.6 B x 2.
    "compressed-tensors int4": (
        "kimi-k2.5",
        {
            "quant_method": "compressed-tensors",
            "config_groups": {"group_0": GROUP},
            "ignore": [*NOTHING_ELSE, DENSE],
        },
        594,
        None,
        "moonshotai/Kimi-K2.5: 595 GB with its vision tower (0.9 GB)",
    ),
    "mxfp4": (
        "gpt-oss-20b",
        {
            "quant_method": "mxfp4",
            "modules_to_not_convert": [
                "model.layers.*.self_attn",
                "model.layers.*.mlp.router",
                "model.embed_tokens",
                "lm_head",
            ],
        },
        13.76,
        None,
        "openai/gpt-oss-20b: 13.76 GB",
    ),
    "bitsandbytes": (
        "llama-3.1-8b",
        {"quant_method": "bitsandbytes", "load_in_8bit": True},
        9.08,
        None,
        "one byte for each of 6.98 B weights of the layers, two for 1.05 B in tables",
    ),
}
"""A file, its quantisation, bytes of the weights (GB), dtype of the cache, and the source."""


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_checkpoints_have_their_published_bytes(name: str, tmp_path: Path) -> None:
    """Weights within 1 %; the cache is what the file says."""
    model, quantization, gigabytes, kv_dtype, source = CHECKPOINTS[name]
    config = PUBLISHED[model][0] | {"quantization_config": quantization}
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config))
    served = ModelConfig(spec=config_json.model(path), max_model_len=1000)
    assert served.weight_bytes / 1e9 == pytest.approx(gigabytes, rel=0.01), source
    assert served.spec.kv_dtype == kv_dtype
    assert served.kv_bytes == (1.0 if kv_dtype == "fp8" else 2.0)


def test_modelopts_own_file_beside_the_config_counts(tmp_path: Path) -> None:
    """NVFP4 checkpoints of that time say nothing in config.json; the folder itself is a name."""
    (tmp_path / "config.json").write_text(json.dumps(PUBLISHED["qwen3-30b-a3b"][0]))
    beside = {"quant_algo": "NVFP4", "kv_cache_quant_algo": "FP8", "exclude_modules": ["lm_head"]}
    (tmp_path / "hf_quant_config.json").write_text(json.dumps({"quantization": beside}))
    spec = config_json.model(tmp_path)
    served = ModelConfig(spec=spec, max_model_len=1000)
    # 29.90 B weights of the layers at 4 bits and an 8-bit scale per 16; tables and routers in 16.
    assert served.weight_bytes / 1e9 == pytest.approx(29.90 * 0.5625 + 0.634 * 2, rel=0.01)
    assert spec.kv_dtype == "fp8"
    assert any("fp8" in note for note in spec.notes)


@pytest.mark.parametrize(
    ("quantization", "named", "gigabytes"),
    [
        (None, "fp8", 34.33),
        (None, "int4", 1.56 * 2 + 31.21 * 0.5195),
        (BLOCKS, "fp8", 34.33),
        (BLOCKS, "bf16", 65.52),
        (BLOCKS, "nvfp4", 1.56 * 2 + 31.21 * 0.5625),
        ({"quant_method": "awq", "bits": 4, "group_size": 64}, "int4", 1.56 * 2 + 31.21 * 0.539),
    ],
)
def test_a_named_dtype_counts_in_place_of_the_files(
    quantization: Config | None, named: str, gigabytes: float, tmp_path: Path
) -> None:
    """Qwen3-32B: 31.21 B weights in the layers, 1.56 B in embedding and head."""
    path = tmp_path / "config.json"
    path.write_text(json.dumps(PUBLISHED["qwen3-32b"][0] | {"quantization_config": quantization}))
    served = ModelConfig(spec=config_json.model(path), max_model_len=1000, weight_dtype=named)
    assert served.weight_bytes / 1e9 == pytest.approx(gigabytes, rel=0.005)


def test_naming_the_dtype_of_a_mixed_checkpoint_changes_nothing(tmp_path: Path) -> None:
    """gpt-oss in MXFP4 keeps its attention in 16 bits; only another dtype converts all."""
    config, quantization = PUBLISHED["gpt-oss-20b"][0], CHECKPOINTS["mxfp4"][1]
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config | {"quantization_config": quantization}))
    stored = ModelConfig(spec=config_json.model(path), max_model_len=1000)
    assert replace(stored, weight_dtype="mxfp4").weight_bytes == stored.weight_bytes
    assert replace(stored, weight_dtype="bf16").weight_bytes == 2 * stored.spec.num_params
    assert replace(stored, weight_dtype="fp8").weight_bytes < 1.2 * stored.spec.num_params
