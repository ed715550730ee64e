"""Configurations as published beside weights give the numbers of the catalogue, or one line."""

from __future__ import annotations

import dataclasses
import json
import tomllib
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from simcluster import catalog
from simcluster.catalog import config_json
from simcluster.catalog.layers import DenseMlp, ModelSpec, Reach
from simcluster.catalog.toml_writer import to_toml
from simcluster.cli import main
from simcluster.errors import ConfigError, DataError
from simcluster.scenario.file import load, resolve

Config = dict[str, Any]


def llama(layers: int, hidden: int, heads: int, kv: int, ffn: int, vocab: int, pos: int) -> Config:
    """Return what the configuration of a Llama-like model holds, but for its architecture."""
    return {
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "num_attention_heads": heads,
        "num_key_value_heads": kv,
        "intermediate_size": ffn,
        "vocab_size": vocab,
        "max_position_embeddings": pos,
        "tie_word_embeddings": False,
        "rope_scaling": None,
        "hidden_act": "silu",
    }


def of(architecture: str, config: Config, **more: object) -> Config:
    """Return a configuration of an architecture; None takes a key out."""
    merged = {"architectures": [architecture], **config, **more}
    return {k: v for k, v in merged.items() if v is not None or k not in config}


LLAMA, MISTRAL, QWEN2 = "LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM"
QWEN3, QWEN3_MOE = "Qwen3ForCausalLM", "Qwen3MoeForCausalLM"
UNUSED_WINDOW = {"use_sliding_window": False, "sliding_window": 131072, "max_window_layers": 28}
QWEN3_OWN = {"head_dim": 128, "use_sliding_window": False, "sliding_window": None}


def opt(layers: int, hidden: int, heads: int) -> Config:
    """Return the configuration of an OPT; it does not say that embeddings are tied."""
    return {
        "architectures": ["OPTForCausalLM"],
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "num_attention_heads": heads,
        "ffn_dim": 4 * hidden,
        "vocab_size": 50272,
        "max_position_embeddings": 2048,
        "word_embed_proj_dim": hidden,
        "do_layer_norm_before": True,
    }


PUBLISHED: dict[str, Config] = {
    # The first Llamas have no key and value heads of their own.
    "llama-30b": of(LLAMA, llama(60, 6656, 52, 52, 17920, 32000, 2048), num_key_value_heads=None),
    "llama-2-7b": of(LLAMA, llama(32, 4096, 32, 32, 11008, 32000, 4096)),
    "llama-2-13b": of(LLAMA, llama(40, 5120, 40, 40, 13824, 32000, 4096)),
    "llama-2-70b": of(LLAMA, llama(80, 8192, 64, 8, 28672, 32000, 4096)),
    "llama-3-8b": of(LLAMA, llama(32, 4096, 32, 8, 14336, 128256, 8192)),
    "llama-3.1-8b": of(LLAMA, llama(32, 4096, 32, 8, 14336, 128256, 131072)),
    "llama-3.1-70b": of(LLAMA, llama(80, 8192, 64, 8, 28672, 128256, 131072)),
    "llama-3.1-405b": of(LLAMA, llama(126, 16384, 128, 8, 53248, 128256, 131072)),
    "codellama-34b": of(LLAMA, llama(48, 8192, 64, 8, 22016, 32000, 16384)),
    "yi-34b": of(LLAMA, llama(60, 7168, 56, 8, 20480, 64000, 4096)),
    "internlm-20b": of("InternLMForCausalLM", llama(60, 5120, 40, 40, 13824, 103168, 4096)),
    # Gate and up are counted together here.
    "qwen-72b": of("QWenLMHeadModel", llama(80, 8192, 64, 64, 2 * 24576, 152064, 32768)),
    "qwen2-72b": of(QWEN2, llama(80, 8192, 64, 8, 29568, 152064, 32768), **UNUSED_WINDOW),
    "qwen2.5-7b": of(QWEN2, llama(28, 3584, 28, 4, 18944, 152064, 32768), **UNUSED_WINDOW),
    "qwen2.5-14b": of(QWEN2, llama(48, 5120, 40, 8, 13824, 152064, 32768), **UNUSED_WINDOW),
    "qwen2.5-32b": of(QWEN2, llama(64, 5120, 40, 8, 27648, 152064, 32768), **UNUSED_WINDOW),
    "qwen2.5-72b": of(QWEN2, llama(80, 8192, 64, 8, 29568, 152064, 32768), **UNUSED_WINDOW),
    "qwen3-8b": of(QWEN3, llama(36, 4096, 32, 8, 12288, 151936, 40960), **QWEN3_OWN),
    "qwen3-14b": of(QWEN3, llama(40, 5120, 40, 8, 17408, 151936, 40960), **QWEN3_OWN),
    # 64 heads of 128 on a hidden size of 5120.
    "qwen3-32b": of(QWEN3, llama(64, 5120, 64, 8, 25600, 151936, 40960), **QWEN3_OWN),
    "qwen3-30b-a3b": of(
        QWEN3_MOE,
        llama(48, 2048, 32, 4, 6144, 151936, 40960),
        **QWEN3_OWN,
        num_experts=128,
        num_experts_per_tok=8,
        moe_intermediate_size=768,
        decoder_sparse_step=1,
        mlp_only_layers=[],
    ),
    "qwen3-235b-a22b": of(
        QWEN3_MOE,
        llama(94, 4096, 64, 4, 12288, 151936, 40960),
        **QWEN3_OWN,
        num_experts=128,
        num_experts_per_tok=8,
        moe_intermediate_size=1536,
        decoder_sparse_step=1,
        mlp_only_layers=[],
    ),
    "mistral-7b-v0.1": of(
        MISTRAL, llama(32, 4096, 32, 8, 14336, 32000, 32768), sliding_window=4096
    ),
    # 32 heads of 128 on a hidden size of 5120; no window.
    "mistral-nemo-2407": of(
        MISTRAL,
        llama(40, 5120, 32, 8, 14336, 131072, 131072),
        head_dim=128,
        sliding_window=None,
    ),
    "mistral-large-2407": of(MISTRAL, llama(88, 12288, 96, 8, 28672, 32768, 131072), head_dim=128),
    "mixtral-8x7b": of(
        "MixtralForCausalLM",
        llama(32, 4096, 32, 8, 14336, 32000, 32768),
        num_local_experts=8,
        num_experts_per_tok=2,
        sliding_window=None,
    ),
    "mixtral-8x22b": of(
        "MixtralForCausalLM",
        llama(56, 6144, 48, 8, 16384, 32000, 65536),
        num_local_experts=8,
        num_experts_per_tok=2,
        sliding_window=None,
    ),
    "deepseek-v3": of(
        "DeepseekV3ForCausalLM",
        llama(61, 7168, 128, 128, 18432, 129280, 163840),
        n_routed_experts=256,
        n_shared_experts=1,
        num_experts_per_tok=8,
        first_k_dense_replace=3,
        moe_layer_freq=1,
        moe_intermediate_size=2048,
        q_lora_rank=1536,
        kv_lora_rank=512,
        qk_nope_head_dim=128,
        qk_rope_head_dim=64,
        v_head_dim=128,
        num_nextn_predict_layers=1,
        quantization_config={"quant_method": "fp8", "weight_block_size": [128, 128]},
    ),
    "gpt-oss-120b": of(
        "GptOssForCausalLM",
        llama(36, 2880, 64, 8, 2880, 201088, 131072),
        head_dim=64,
        num_local_experts=128,
        num_experts_per_tok=4,
        experts_per_token=4,
        sliding_window=128,
        layer_types=["sliding_attention", "full_attention"] * 18,
        quantization_config={
            "quant_method": "mxfp4",
            "modules_to_not_convert": ["model.layers.*.self_attn", "model.layers.*.mlp.router"],
        },
    ),
    "opt-13b": opt(40, 5120, 40),
    "opt-30b": opt(48, 7168, 56),
    "opt-66b": opt(64, 9216, 72),
    "opt-175b": opt(96, 12288, 96),
    "gpt3-175b": {
        "architectures": ["GPT2LMHeadModel"],
        "n_layer": 96,
        "n_embd": 12288,
        "n_head": 96,
        "n_inner": None,
        "n_positions": 2048,
        "n_ctx": 2048,
        "vocab_size": 50257,
    },
    "bloom-176b": {
        "architectures": ["BloomForCausalLM"],
        "n_layer": 70,
        "hidden_size": 14336,
        "num_attention_heads": 112,
        "seq_length": 2048,
        "vocab_size": 250880,
    },
    "falcon-180b": {
        "architectures": ["FalconForCausalLM"],
        "num_hidden_layers": 80,
        "hidden_size": 14848,
        "num_attention_heads": 232,
        "num_kv_heads": 8,
        "multi_query": True,
        "new_decoder_architecture": True,
        "parallel_attn": True,
        "vocab_size": 65024,
    },
    "phi-2": of("PhiForCausalLM", llama(32, 2560, 32, 32, 10240, 51200, 2048)),
    "phi-3-mini-4k": of(
        "Phi3ForCausalLM", llama(32, 3072, 32, 32, 8192, 32064, 4096), sliding_window=2047
    ),
    "phi-3-medium-4k": of(
        "Phi3ForCausalLM", llama(40, 5120, 40, 10, 17920, 32064, 4096), sliding_window=2047
    ),
    "phi-4": of(
        "Phi3ForCausalLM", llama(40, 5120, 40, 10, 17920, 100352, 16384), sliding_window=None
    ),
}
"""By name in the catalogue: the keys of the published files that say something about the shape."""


def written(folder: Path, config: object, name: str = "config.json") -> Path:
    """Write a configuration and return its path."""
    path = folder / name
    path.write_text(json.dumps(config))
    return path


def call(*arguments: object) -> Result:
    """Call the command line."""
    return CliRunner().invoke(main, [str(a) for a in arguments], catch_exceptions=False)


# Numbers ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_files_give_the_numbers_of_the_catalogue(name: str, tmp_path: Path) -> None:
    """Shape, parameters and cache, all of them; name and source are the file's."""
    found = config_json.model(written(tmp_path, PUBLISHED[name]))
    expected = catalog.model(name)
    assert dataclasses.replace(found, name=name, source=expected.source) == expected


def test_most_of_the_catalogue_is_checked() -> None:
    """Two names are left out: the same shape under another name."""
    files = json.loads((Path(__file__).parent / "model_files.json").read_text("utf-8"))
    assert not PUBLISHED.keys() & files.keys()
    assert len({*catalog.names("model")} - PUBLISHED.keys() - files.keys()) <= 2


@pytest.mark.parametrize(
    ("name", "config", "billions", "kv_bytes", "sliding"),
    [
        # 26 layers x 2 x 4 heads x 256 x 2 bytes; half of the layers have a window
        (
            "gemma-2-2b",
            of(
                "Gemma2ForCausalLM",
                llama(26, 2304, 8, 4, 9216, 256000, 8192),
                head_dim=256,
                sliding_window=4096,
                tie_word_embeddings=None,
            ),
            2.61,
            106_496,
            13,
        ),
        # 26 layers of 1 head; every sixth of the layers attends to all
        (
            "gemma-3-1b",
            of(
                "Gemma3ForCausalLM",
                llama(26, 1152, 4, 1, 6912, 262144, 32768),
                head_dim=256,
                sliding_window=512,
                sliding_window_pattern=6,
                tie_word_embeddings=None,
            ),
            1.0,
            26_624,
            22,
        ),
        # 60 routed experts, and a shared one as wide as four
        (
            "qwen1.5-moe-a2.7b",
            of(
                "Qwen2MoeForCausalLM",
                llama(24, 2048, 16, 16, 5632, 151936, 8192),
                num_experts=60,
                num_experts_per_tok=4,
                moe_intermediate_size=1408,
                shared_expert_intermediate_size=5632,
                decoder_sparse_step=1,
            ),
            14.3,
            196_608,
            0,
        ),
        # latent attention without a rank of the query
        (
            "deepseek-v2-lite",
            of(
                "DeepseekV2ForCausalLM",
                llama(27, 2048, 16, 16, 10944, 102400, 163840),
                n_routed_experts=64,
                n_shared_experts=2,
                num_experts_per_tok=6,
                first_k_dense_replace=1,
                moe_layer_freq=1,
                moe_intermediate_size=1408,
                q_lora_rank=None,
                kv_lora_rank=512,
                qk_nope_head_dim=128,
                qk_rope_head_dim=64,
                v_head_dim=128,
            ),
            15.7,
            31_104,
            0,
        ),
        (
            "gpt-neox-20b",
            of("GPTNeoXForCausalLM", llama(44, 6144, 64, 64, 24576, 50432, 2048)),
            20.6,
            1_081_344,
            0,
        ),
        # one head for all queries
        (
            "falcon-7b",
            {
                "architectures": ["FalconForCausalLM"],
                "num_hidden_layers": 32,
                "hidden_size": 4544,
                "num_attention_heads": 71,
                "multi_query": True,
                "vocab_size": 65024,
            },
            6.9,
            8_192,
            0,
        ),
        (
            "gemma-7b",
            of(
                "GemmaForCausalLM",
                llama(28, 3072, 16, 16, 24576, 256000, 8192),
                head_dim=256,
                tie_word_embeddings=True,
            ),
            8.54,
            458_752,
            0,
        ),
    ],
)
def test_other_published_models_have_their_published_size(
    name: str, config: Config, billions: float, kv_bytes: int, sliding: int, tmp_path: Path
) -> None:
    """Architectures of which the catalogue has none, against the size on the model's card."""
    found = config_json.model(written(tmp_path, config))
    assert found.num_params / 1e9 == pytest.approx(billions, rel=0.01), name
    assert found.kv_bytes_per_token == kv_bytes
    assert sum(windows(found)) == sliding


def windows(spec: ModelSpec) -> list[bool]:
    """Which layers have a window."""
    return [layer.mixer is not None and layer.mixer.reach is not None for layer in spec.each_layer]


def test_every_architecture_is_tested() -> None:
    """A new line of the table comes with a published file."""
    source = Path(__file__).read_text() + Path(__file__).with_name("test_published.py").read_text()
    assert [name for name in config_json.ARCHITECTURES if f'"{name}"' not in source] == []


def test_pruned_blocks_have_shapes_of_their_own(tmp_path: Path) -> None:
    """Widths are 2/3 of the multiple, up to 256; blocks may lack attention or MLP (DeciLM)."""
    blocks = [
        {"attention": {"n_heads_in_group": 8}, "ffn": {"ffn_mult": 5.25}},
        {"attention": {"no_op": True}, "ffn": {"ffn_mult": 1.0}},
        {"attention": {"n_heads_in_group": 16}, "ffn": {"no_op": True}},
    ]
    config = of("DeciLMForCausalLM", llama(3, 8192, 64, 8, 1, 128256, 131072), block_configs=blocks)
    found = config_json.model(written(tmp_path, config | {"intermediate_size": None}))
    attention = 2 * 8192 * 128 * 64
    caches = [2 * 8192 * 128 * heads for heads in (8, 4)]
    mlps = 3 * 8192 * (28672 + 5632)
    tables = 2 * 128256 * 8192
    assert found.num_params == 2 * attention + sum(caches) + mlps + tables + 5 * 8192
    assert found.kv_bytes_per_token == 2 * 2 * 128 * (8 + 4)


def test_qwen_windows_start_at_a_layer(tmp_path: Path) -> None:
    """Only where windows are used at all."""
    config = of(QWEN2, llama(28, 3584, 28, 4, 18944, 152064, 131072), **UNUSED_WINDOW)
    used = config | {"use_sliding_window": True, "max_window_layers": 21, "sliding_window": 4096}
    found = config_json.model(written(tmp_path, used))
    assert found.reach == Reach(4096)
    assert windows(found) == [False] * 21 + [True] * 7


def test_dense_layers_between_experts_are_counted(tmp_path: Path) -> None:
    """Every second layer has experts, and two are dense by name (one of them anyway)."""
    config = PUBLISHED["qwen3-30b-a3b"] | {"decoder_sparse_step": 2, "mlp_only_layers": [0, 1]}
    layers = config_json.model(written(tmp_path, config)).each_layer
    assert sum(isinstance(layer.mlps[0], DenseMlp) for layer in layers) == 25


def test_the_model_type_stands_in_for_a_missing_architecture(tmp_path: Path) -> None:
    """Some files hold only that."""
    config = PUBLISHED["llama-2-7b"] | {"architectures": None, "model_type": "llama"}
    assert config_json.model(written(tmp_path, config)).num_params == 6_738_415_616


def test_names_come_from_the_file_its_folder_or_the_call(tmp_path: Path) -> None:
    """In the order: given, in the file, folder, file."""
    folder = tmp_path / "My-Model-7B"
    folder.mkdir()
    config = PUBLISHED["llama-2-7b"]
    assert config_json.read(written(folder, config))["name"] == "my-model-7b"
    assert config_json.read(written(folder, config, "Other.json"))["name"] == "other"
    named = written(folder, config | {"_name_or_path": "org/Llama-2-7b-hf"})
    assert config_json.read(named)["name"] == "llama-2-7b-hf"
    assert config_json.read(named, "mine")["name"] == "mine"


# Refusals ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        ({"architectures": ["T5ForConditionalGeneration"]}, ["T5ForCond", "an encoder"]),
        ({"architectures": ["KimiLinearForCausalLM"]}, ["is not modelled", "Kimi Delta"]),
        ({"num_hidden_layers": 10**9}, ["num_hidden_layers", "at most 1000"]),
        ({"quantization_config": {"quant_method": "hqq"}}, ["'hqq'", "not known"]),
        ({"quantization_config": {"quant_method": "gptq", "bits": 3}}, ["3 bits", "not known"]),
        ({"quantization_config": {"quant_algo": "FP3"}}, ["'FP3'", "not known"]),
        ({"architectures": ["Qwen3ForCausaLM"]}, ["is not an architecture that can be read"]),
        ({"architectures": None, "model_type": "t5"}, ["model_type = 't5'", "deepseek_v3"]),
        ({"architectures": None}, ["architectures: the key is missing"]),
        ({"architectures": []}, ["architectures: the key is missing"]),
        ({"hidden_size": None}, ["hidden_size: the key is missing", "n_embd"]),
        ({"intermediate_size": None}, ["intermediate_size: the key is missing"]),
        ({"vocab_size": None}, ["vocab_size: the key is missing"]),
        ({"max_position_embeddings": None}, ["max_position_embeddings: the key is missing"]),
        ({"num_hidden_layers": 0}, ["num_hidden_layers = 0", "at least 1"]),
        ({"num_hidden_layers": 32.0}, ["num_hidden_layers = 32.0", "whole number"]),
        ({"num_hidden_layers": True}, ["num_hidden_layers = True", "whole number"]),
        ({"num_attention_heads": "32"}, ["num_attention_heads = '32'", "whole number"]),
        ({"num_attention_heads": 28}, ["hidden_size = 4096", "28 attention heads"]),
        ({"num_key_value_heads": 5}, ["num_key_value_heads = 5", "divide the 32"]),
        ({"num_key_value_heads": 64}, ["num_key_value_heads = 64", "divide the 32"]),
        ({"tie_word_embeddings": 1}, ["tie_word_embeddings = 1", "true or false"]),
        ({"layer_types": ["full_attention"]}, ["layer_types", "each of the 32 layers"]),
        ({"layer_types": ["linear_attention"] * 32}, ["'linear_attention'", "not modelled"]),
        ({"layer_types": ["sliding_attention"] * 32}, ["sliding_window: the key is missing"]),
    ],
)
def test_a_wrong_file_is_one_line(change: Config, parts: list[str], tmp_path: Path) -> None:
    """File, key, value, rule, remedy."""
    path = written(tmp_path, PUBLISHED["llama-2-7b"] | change)
    with pytest.raises(ConfigError) as caught:
        config_json.read(path)
    message = str(caught.value)
    assert message.startswith("config.json: ")
    assert "\n" not in message
    for part in parts:
        assert part in message


@pytest.mark.parametrize(
    ("name", "change", "parts"),
    [
        ("opt-13b", {"head_dim": 64}, ["head_dim = 64", "2560, not the hidden size 5120"]),
        ("opt-13b", {"word_embed_proj_dim": 512}, ["word_embed_proj_dim = 512", "not modelled"]),
        ("mixtral-8x7b", {"num_experts_per_tok": 9}, ["num_experts_per_tok = 9", "8 experts"]),
        ("mixtral-8x7b", {"num_local_experts": None}, ["num_local_experts: the key is missing"]),
        ("qwen3-30b-a3b", {"mlp_only_layers": 3}, ["mlp_only_layers = 3", "list of layer numbers"]),
        ("qwen-72b", {"intermediate_size": 49153}, ["intermediate_size = 49153", "even"]),
        ("deepseek-v3", {"kv_lora_rank": None}, ["kv_lora_rank: the key is missing"]),
    ],
)
def test_contradictions_are_refused(
    name: str, change: Config, parts: list[str], tmp_path: Path
) -> None:
    """In the words of the file."""
    with pytest.raises(ConfigError) as caught:
        config_json.read(written(tmp_path, PUBLISHED[name] | change))
    for part in parts:
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("content", "part"),
    [(b"{", "is not JSON"), (b"[1]", "must be a JSON object"), (b"\xff\xfe\x00", "is not text")],
)
def test_a_file_that_is_no_configuration(content: bytes, part: str, tmp_path: Path) -> None:
    """One line with the path."""
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(DataError, match=part):
        config_json.read(path)
    with pytest.raises(DataError, match="cannot be read"):
        config_json.read(tmp_path / "none.json")


# Use --------------------------------------------------------------------------------------------


SCENARIO: Config = {
    "cluster": {"gpu": "A100", "nodes": 1, "gpus_per_node": 2},
    "workload": {
        "num_requests": 5,
        "rate_rps": 1,
        "lengths": {"kind": "fixed", "prompt_len": 300, "output_len": 30},
    },
    "strategy": [{"name": "vLLM", "kind": "nodg"}],
}


def test_what_is_printed_is_a_catalogue_file(tmp_path: Path) -> None:
    """With the sums for people as comments."""
    result = call("catalog", "add-model", written(tmp_path, PUBLISHED["qwen3-8b"]), "--name", "q")
    assert result.exit_code == 0
    (row,) = tomllib.loads(result.stdout)["model"]
    assert (row["name"], row["num_params"]) == ("q", 8_190_726_144)
    assert "# q: 8.19 billion parameters (8,190,726,144" in result.stdout
    assert "# KV cache: 147,456 bytes per token" in result.stdout


def test_a_catalogue_file_grows_and_serves(tmp_path: Path) -> None:
    """Two models in one file, what stood there stays, and a scenario uses it."""
    mine = tmp_path / "mine.toml"
    mine.write_text("# ours\n")
    for name in ("qwen3-8b", "deepseek-v3"):
        config = written(tmp_path, PUBLISHED[name])
        result = call("catalog", "add-model", config, "-o", mine, "--name", f"my-{name}")
        assert result.exit_code == 0, result.output
        assert f"my-{name}: " in result.stdout
    assert "GB as stored (fp8-block)" in result.stdout
    assert mine.read_text().startswith("# ours\n\n[[model]]")
    scenario = tmp_path / "scenario.toml"
    document = {"catalog": ["mine.toml"], "model": {"name": "my-qwen3-8b"}, **SCENARIO}
    scenario.write_text(to_toml(document))
    assert load(scenario).environment.model.kv_bytes_per_token == 147_456
    before = mine.read_bytes()
    again = call("catalog", "add-model", config, "-o", mine, "--name", "my-qwen3-8b")
    assert again.exit_code == 1
    assert again.stderr.startswith("error: model.name = 'my-qwen3-8b': is the name of an entry")
    assert mine.read_bytes() == before


def test_a_scenario_names_the_file_itself(tmp_path: Path) -> None:
    """Relative to the scenario; the document reads back to the same scenario."""
    (tmp_path / "models").mkdir()
    written(tmp_path / "models", PUBLISHED["qwen3-8b"])
    scenario = tmp_path / "scenario.toml"
    scenario.write_text(to_toml({"model": {"name": "models/config.json"}, **SCENARIO}))
    found = load(scenario)
    spec = found.environment.model.spec
    assert (spec.name, spec.num_params) == ("models", 8_190_726_144)
    assert resolve(found.document) == found
    result = call("run", scenario, "--set", "model.name=models/none.json")
    assert result.exit_code == 1
    assert "none.json: cannot be read" in result.stderr


def test_a_refused_file_leaves_with_one_line(tmp_path: Path) -> None:
    """Exit code 1, nothing written."""
    out = tmp_path / "mine.toml"
    config = written(tmp_path, PUBLISHED["llama-2-7b"] | {"architectures": ["BertModel"]})
    result = call("catalog", "add-model", config, "-o", out)
    assert result.exit_code == 1
    assert result.stderr.startswith(
        "error: config.json: architectures = 'BertModel': is not modelled"
    )
    assert len(result.stderr.splitlines()) == 1
    assert not out.exists()
    out.write_text("not TOML")
    config = written(tmp_path, PUBLISHED["llama-2-7b"])
    assert "is not TOML" in call("catalog", "add-model", config, "-o", out).stderr
    assert (
        "cannot be written" in call("catalog", "add-model", config, "-o", tmp_path / "a/b").stderr
    )


def test_words_without_a_command_still_search() -> None:
    """`simcluster catalog A100 --kind gpu` is what people type."""
    short = call("catalog", "A100", "--kind", "gpu").stdout
    assert short == call("catalog", "list", "A100", "--kind", "gpu").stdout
    assert short == call("catalog", "--kind", "gpu", "A100").stdout
    assert "A100-80GB PCIe" in call("catalog", "a100", "pcie").stdout
    shown = call("catalog", "--help").stdout
    assert "[WORDS]" in shown
    assert "add-model" in shown


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"num_kv_heads": 3}, "num_kv_heads = 3: does not divide the 32 query heads"),
        ({"num_params": 7_000_000_000}, "num_params = 7000000000: is not the 6738415616"),
        ({"layers": [{"repeat": 5}]}, "num_layers = 32: is not the 5 layers"),
        ({"layers": [{"heads": 5}]}, "layers[0].heads = 5: model.layers has no such key"),
        ({"layers": []}, "layers = []: must be a list of tables"),
        ({"mixer": "none", "mlp": "dense"}, "no layer has attention"),
        ({"num_experts": 4}, "num_experts = 4: needs num_experts_active"),
        (
            {"num_experts": 4, "num_experts_active": 5, "moe_ffn_dim": 8},
            "num_experts_active = 5: is more than the 4 experts",
        ),
        ({"num_sliding_layers": 3}, "num_sliding_layers = 3: needs sliding_window"),
        ({"num_dense_layers": 33}, "num_dense_layers = 33: is more than the 32 layers"),
        ({"kv_lora_rank": 33}, "kv_lora_rank = 33: needs qk_nope_dim"),
        ({"sliding_window": 10**12}, "must be a whole number from 0 to 1.67772e+07"),
        ({"attention_chunk": 10**12}, "must be a whole number from 0 to 1.67772e+07"),
        ({"num_heads": 10**7}, "num_heads = 10000000: must be a whole number from 1 to 65536"),
    ],
)
def test_entries_written_by_hand_are_held_to_the_same(
    change: Config, part: str, tmp_path: Path
) -> None:
    """An inconsistent shape in a catalogue file is one line too."""
    path = tmp_path / "mine.toml"
    row = {"name": "mine", "like": "llama-2-7b", "source": "test", **change}
    path.write_text(to_toml({"model": [row]}))
    with pytest.raises(ConfigError, match=r"mine\.toml: model\[0\]") as caught:
        catalog.Catalog().with_file(path)
    assert part in str(caught.value)
