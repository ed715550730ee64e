"""Entries that were read from a config.json: the file, published sizes, and arithmetic on paper.

``model_files.json`` holds, by name of the entry, the keys of the published file that say something
about the shape or the dtypes.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from simcluster import catalog
from simcluster.catalog import config_json
from simcluster.config import ModelConfig

FILES: dict[str, dict[str, Any]] = json.loads(
    (Path(__file__).parent / "model_files.json").read_text("utf-8")
)


def cached(*layers: tuple[int, int, int]) -> int:
    """16-bit keys and values of a token (bytes): layers, their KV heads, width of a head."""
    return sum(2 * 2 * number * heads * width for number, heads, width in layers)


MLA = 2 * (512 + 64)
"""16-bit latent and rotary key of a token in one layer of DeepSeek-V3 (bytes)."""

PUBLISHED: dict[str, tuple[float, int, str]] = {
    "llama-3.2-1b": (1.23, cached((16, 8, 64)), "model card: 1.23 B"),
    "llama-3.2-3b": (3.21, cached((28, 8, 128)), "model card: 3.21 B"),
    "llama-4-scout": (
        109 - 0.87,
        cached((48, 8, 128)),
        "model card: 109 B; vision: 34 layers of 4 x 1408^2 + 2 x 1408 x 5632, and a projector",
    ),
    "llama-4-maverick": (400, cached((48, 8, 128)), "model card: 400 B"),
    "nemotron-nano-9b-v2": (8.89, cached((4, 8, 128)), "arXiv 2508.14444: 8.89 B, 4 of attention"),
    "nemotron-3-nano-30b-a3b": (31.6, cached((6, 2, 128)), "arXiv 2512.20848: 31.6 B"),
    "nemotron-3-super-120b-a12b": (120.6, cached((8, 2, 128)), "model card: 120.6 B"),
    "nemotron-h-56b": (56, cached((10, 8, 128)), "arXiv 2504.03624: 56 B, ten of attention"),
    "qwen3-0.6b": (0.6, cached((28, 8, 128)), "model card: 0.6 B"),
    "qwen3-4b": (4.0, cached((36, 8, 128)), "model card: 4.0 B"),
    "qwen3-coder-30b-a3b": (30.5, cached((48, 4, 128)), "model card: 30.5 B"),
    "qwen3-coder-480b-a35b": (480, cached((62, 8, 128)), "model card: 480 B"),
    "qwen3-next-80b-a3b": (80, cached((12, 2, 256)), "model card: 80 B, every fourth of attention"),
    "qwen3-vl-8b": (8.2, cached((36, 8, 128)), "model card of its text model, Qwen3-8B: 8.2 B"),
    "qwen3-vl-32b": (32.8, cached((64, 8, 128)), "model card of Qwen3-32B: 32.8 B"),
    "qwen3-vl-235b-a22b": (235, cached((94, 4, 128)), "model card of Qwen3-235B-A22B: 235 B"),
    "qwen3.5-27b": (27, cached((16, 4, 256)), "name: 27 B; every fourth of attention"),
    "qwen3.5-35b-a3b": (35, cached((10, 2, 256)), "name: 35 B; every fourth of attention"),
    "qwen3.5-122b-a10b": (122, cached((12, 2, 256)), "name: 122 B; every fourth of attention"),
    "qwen3.5-397b-a17b": (397, cached((15, 2, 256)), "name: 397 B; every fourth of attention"),
    "gemma-3-4b": (3.884, cached((34, 4, 256)), "arXiv 2503.19786, table 1: 675 + 3209 M"),
    "gemma-3-12b": (11.771, cached((48, 8, 256)), "arXiv 2503.19786, table 1: 1012 + 10759 M"),
    "gemma-3-27b": (27.016, cached((62, 16, 128)), "arXiv 2503.19786, table 1: 1416 + 25600 M"),
    "gemma-4-26b-a4b": (25.2, cached((25, 8, 256), (5, 2, 512)), "model card: 25.2 B"),
    "gemma-4-31b": (30.7, cached((50, 16, 256), (10, 4, 512)), "model card: 30.7 B"),
    "mistral-small-3": (23.6, cached((40, 8, 128)), "model card: 23.6 B"),
    "mistral-small-3.1": (23.6, cached((40, 8, 128)), "model card of Mistral Small 3: 23.6 B"),
    "mistral-large-3": (673, 61 * MLA, "model card: 673 B, and 2.5 B of vision"),
    "deepseek-v3.2": (671, 61 * MLA, "that of DeepSeek-V3 (arXiv 2412.19437) and an index"),
    "kimi-k2": (1026, 61 * MLA, "tensors of moonshotai/Kimi-K2-Instruct: 1,026 B"),
    "kimi-k2.5": (1026, 61 * MLA, "that of Kimi K2"),
    "glm-4.5": (355, cached((92, 8, 128)), "arXiv 2508.06471, table 1: 355 B"),
    "glm-4.5-air": (106, cached((46, 8, 128)), "arXiv 2508.06471, table 1: 106 B"),
    "glm-4.6": (355, cached((92, 8, 128)), "that of GLM-4.5"),
    "glm-5": (744, 78 * MLA, "model card: 744 B"),
    "minimax-m2": (230, cached((62, 8, 128)), "model card: 230 B"),
    "gpt-oss-20b": (20.91, cached((24, 8, 64)), "arXiv 2508.10925, table 1: 20.91 B"),
}
"""Parameters (billions), 16-bit cache of a token over all layers (bytes), and the source."""


@pytest.mark.parametrize("name", PUBLISHED)
def test_entries_have_their_published_sizes(name: str) -> None:
    """Parameters within 1 % of what the source says, the cache as on paper."""
    billions, kv_bytes, source = PUBLISHED[name]
    spec = catalog.model(name)
    assert spec.num_params / 1e9 == pytest.approx(billions, rel=0.01), source
    assert spec.kv_bytes_per_token == kv_bytes


@pytest.mark.parametrize("name", FILES)
def test_entries_are_what_their_files_give(name: str, tmp_path: Path) -> None:
    """Shape, dtypes and notes: nobody has typed a number."""
    (tmp_path / "config.json").write_text(json.dumps(FILES[name]))
    read, entry = config_json.model(tmp_path), catalog.model(name)
    assert replace(read, name=name, source=entry.source) == entry


def test_every_file_has_a_published_size() -> None:
    """But for the one whose blocks are counted below."""
    assert FILES.keys() - PUBLISHED.keys() == {"llama-3.3-nemotron-super-49b"}


def test_pruned_blocks_are_counted_one_by_one() -> None:
    """Nemotron Super 49B, from its blocks: 49.9 B and a cache of 49 layers."""
    file, spec = FILES["llama-3.3-nemotron-super-49b"], catalog.model("nemotron-super-49b")
    hidden, head_dim, heads = 8192, 128, 64
    total, kv_bytes, attending = 2.0 * 128256 * hidden, 0, 0
    for block in file["block_configs"]:
        if not block["attention"].get("no_op"):
            kv_heads = heads // block["attention"]["n_heads_in_group"]
            total += 2 * hidden * head_dim * (heads + kv_heads)
            kv_bytes += cached((1, kv_heads, head_dim))
            attending += 1
        if not block["ffn"].get("no_op"):
            total += 3 * hidden * (block["ffn"]["ffn_mult"] * hidden * 2 / 3)  # engines round up
    assert spec.num_params == pytest.approx(total, rel=0.01)
    assert spec.num_params / 1e9 == pytest.approx(49.9, rel=0.001)
    assert (spec.kv_bytes_per_token, attending) == (kv_bytes, 49)


CHECKPOINTS = [
    ("gpt-oss-20b", 13.76, "openai/gpt-oss-20b: 13.76 GB"),
    ("kimi-k2.5", 594, "moonshotai/Kimi-K2.5: 595 GB with its vision tower (0.9 GB)"),
    # 224.7 B in the layers' matrices at a byte, the rest (tables, routers) at two.
    ("minimax-m2", 227.4 + 2 * 1.28, "one byte a number, embedding and head in 16 bits"),
    ("qwen3-4b", 8.04, "Qwen/Qwen3-4B: 8.04 GB"),
    ("llama-3.2-1b", 2.47, "meta-llama/Llama-3.2-1B: 2.47 GB"),
]


@pytest.mark.parametrize(("name", "gigabytes", "source"), CHECKPOINTS)
def test_entries_weigh_what_their_checkpoints_do(name: str, gigabytes: float, source: str) -> None:
    """Bytes of the weights as they are stored, within 1 %."""
    served = ModelConfig(spec=catalog.model(name), max_model_len=1000)
    assert served.weight_bytes / 1e9 == pytest.approx(gigabytes, rel=0.01), source


@pytest.mark.parametrize(
    ("asked", "name"),
    [
        ("deepseek-r1", "deepseek-v3"),
        ("deepseek-ai/DeepSeek-V3.1", "deepseek-v3"),
        ("llama-3.3-70b", "llama-3.1-70b"),
        ("devstral-small", "mistral-small-3.1"),
        ("MiniMaxAI/MiniMax-M2", "minimax-m2"),
        ("zai-org/GLM-4.6", "glm-4.6"),
    ],
)
def test_models_of_one_shape_are_found_by_all_their_names(asked: str, name: str) -> None:
    """A later release of the same shape needs no entry of its own."""
    assert catalog.model(asked).name == name
