"""The catalogue: complete, consistent, sourced, found by short names, extended by users."""

from __future__ import annotations

import csv
import os
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import truncnorm

from helpers.refusals import refused
from simcluster import catalog
from simcluster.catalog import Catalog, derive, store, tables
from simcluster.catalog.layers import (
    Attention,
    DenseMlp,
    LatentAttention,
    Mixer,
    ModelSpec,
    Reach,
    Recurrent,
)
from simcluster.catalog.specs import Price
from simcluster.errors import ConfigError, DataError

DATA = Path(
    os.environ.get("SIMCLUSTER_DATA", Path(__file__).resolve().parents[2] / "../shared/data")
)

GETTERS: dict[str, Callable[..., Any]] = {
    "gpu": catalog.gpu,
    "model": catalog.model,
    "link": catalog.link,
    "node": catalog.node,
    "engine": catalog.engine,
    "lengths": catalog.lengths,
    "quality": catalog.quality,
}
ALL = [(kind, name) for kind in catalog.KINDS for name in catalog.names(kind)]


def measured(*parts: str) -> Path:
    """Path of a measured set; skips the test where the set is not here."""
    path = DATA.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"measured set {parts[0]} is not here (SIMCLUSTER_DATA)")
    return path


def rows(*parts: str) -> list[dict[str, str]]:
    """Rows of a measured CSV file."""
    with measured(*parts).open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def texts(row: tables.Row, key: str) -> list[str]:
    """List of texts of an entry; empty where the key is absent."""
    value = row.get(key, [])
    assert isinstance(value, list)
    return value


def count_params(m: ModelSpec) -> int:
    """Parameters of a decoder-only model, written down matrix by matrix."""
    h = m.hidden_size
    matrices = 3 if m.gated_mlp else 2
    total = m.vocab_size * h * (1 if m.tied_embeddings else 2)
    for layer in m.each_layer:
        total += count_mixer(layer.mixer, h) + h * (layer.mixer is not None) + h * len(layer.mlps)
        for mlp in layer.mlps:
            if isinstance(mlp, DenseMlp):
                total += matrices * h * mlp.ffn_dim
                continue
            read = mlp.latent_dim or h
            total += matrices * (read * mlp.ffn_dim * mlp.num_experts + h * mlp.shared_ffn_dim)
            total += h * mlp.num_experts + 2 * h * mlp.latent_dim
    return total


def count_mixer(a: Mixer | None, h: int) -> int:
    """Parameters of what lets tokens see one another."""
    if a is None:
        return 0
    if isinstance(a, Recurrent):
        values, keys = a.num_heads * a.value_dim, a.num_key_heads * a.key_dim
        each = {"gated-deltanet": 2, "mamba2": 1}[a.kind]  # b and a; dt
        into = h * (2 * values + 2 * keys + each * a.num_heads)
        return into + (values + 2 * keys) * a.conv_kernel + values * h
    if isinstance(a, LatentAttention):
        q = h * a.q_lora_rank + a.q_lora_rank * a.num_heads * (a.qk_nope_dim + a.qk_rope_dim)
        kv = h * (a.kv_lora_rank + a.qk_rope_dim)
        kv += a.kv_lora_rank * a.num_heads * (a.qk_nope_dim + a.v_head_dim)
        if a.index is not None:
            kv += a.q_lora_rank * a.index.num_heads * a.index.head_dim
            kv += h * a.index.head_dim + h * a.index.num_heads
        return q + kv + a.num_heads * a.v_head_dim * h
    q = (2 if a.output_gate else 1) * h * a.num_heads * a.head_dim
    v = 0 if a.values_are_keys else h * a.num_kv_heads * a.v_head_dim
    return q + h * a.num_kv_heads * a.head_dim + v + h * a.num_heads * a.v_head_dim


# entries

ON_PAPER: dict[str, tuple[float, float, float, set[str], float]] = {
    # 132 of the SXM part's SMs: half of 1,671 with sparsity, half of 3,341.
    "H100 NVL": (1671 / 2, 3341 / 2, 3900, {"fp8", "int8"}, 64),
    # A node of 8: 36 PFLOPS of sparse BF16, 72 of sparse FP8, 62 TB/s, NVLink 1.8 TB/s both ways.
    "B300 SXM": (36e3 / 8 / 2, 72e3 / 8 / 2, 62e3 / 8, {"fp8"}, 1800 / 2),
    # A rack of 72: 360 PFLOPS of FP8 for training, half of that in BF16, 576 TB/s.
    "GB300 (per GPU)": (180e3 / 72, 360e3 / 72, 576e3 / 72, {"fp8"}, 1800 / 2),
    # CDNA 3: 304 units x 2,048 and 4,096 per clock, 2.1 GHz.
    "MI325X": (304 * 2048 * 2.1e-3, 304 * 4096 * 2.1e-3, 6000, {"fp8", "int8"}, 7 * 64),
    # CDNA 4: 256 units x 4,096 and 8,192 per clock, 2.4 GHz.
    "MI355X": (256 * 4096 * 2.4e-3, 256 * 8192 * 2.4e-3, 8000, {"fp8", "int8"}, 7 * 76.8),
    # 82 SMs x 4 tensor cores x 64 FMA (32-bit sums) or 256 (integers), 1.695 GHz; 384 bits.
    "RTX 3090": (82 * 4 * 128 * 1.695e-3, 82 * 4 * 512 * 1.695e-3, 19.5 * 384 / 8, {"int8"}, 32),
    "Gaudi 3": (1835, 1835, 3670, {"fp8"}, 21 * 200 / 8),
    # A package of two dies: 752 TFLOPS, 3.2 TB/s, 392 GB/s.
    "Ascend 910C (per die)": (752 / 2, 752, 3200 / 2, {"int8"}, 392 / 2),
    # Pods of 256 chips: 50.63 and 234.9 PFLOPS; 4 ports of 400 and 800 Gbit/s per direction.
    "TPU v5e": (50.63e3 / 256, 100e3 / 256, 800, {"int8"}, 4 * 400 / 8),
    "TPU v6e": (234.9e3 / 256, 2 * 234.9e3 / 256, 1638, {"int8"}, 4 * 800 / 8),
}
"""TFLOPS in 16 and 8 bits, GB/s, native 8-bit numbers, GB/s of the fabric per direction."""


@pytest.mark.parametrize("name", ON_PAPER)
def test_parts_read_from_documents_follow_from_other_numbers(name: str) -> None:
    """Peaks from units and clocks or from whole nodes, racks and pods, within 1 %."""
    tflops_16, tflops_8, bandwidth, native, link = ON_PAPER[name]
    gpu = catalog.gpu(name)
    assert gpu.flops_16bit / 1e12 == pytest.approx(tflops_16, rel=0.01)
    assert gpu.flops_8bit is not None
    assert gpu.flops_8bit / 1e12 == pytest.approx(tflops_8, rel=0.01)
    assert gpu.memory_bandwidth / 1e9 == pytest.approx(bandwidth, rel=0.001)
    assert set(gpu.native_8bit) == native
    assert catalog.link(gpu.fabric).bandwidth / 1e9 == pytest.approx(link, rel=0.001)
    assert gpu.constants.accuracy == "data-sheet"
    assert any(catalog.node(node).gpu == name for node in catalog.names("node"))


@pytest.mark.parametrize(("kind", "name"), ALL)
def test_every_entry_loads_under_its_name_and_names_its_source(kind: str, name: str) -> None:
    """A number without a source cannot be trusted or mended."""
    entry = GETTERS[kind](name)
    assert entry.name == name
    assert len(entry.source) > 20


@pytest.mark.parametrize("table", tables.TABLES)
def test_packaged_entries_obey_the_rules_for_users_entries(table: str) -> None:
    """The files of the package are examples for a user's own."""
    for i, row in enumerate(store.packaged(table)):
        tables.check(table, row, where=f"{table}[{i}]")


@pytest.mark.parametrize("table", [t for t in tables.TABLES if t != "price"])
def test_no_two_entries_answer_to_one_name(table: str) -> None:
    """An alias that means two parts would silently pick one of them."""
    called = [
        store.fold(name)
        for row in store.packaged(table)
        for name in {store.fold(n) for n in (str(row["name"]), *texts(row, "aliases"))}
    ]
    assert len(called) == len(set(called))


def test_everything_that_is_named_exists() -> None:
    """GPUs name links and kernel constants, nodes name GPUs and links, prices name GPUs."""
    for name in catalog.names("gpu"):
        gpu = catalog.gpu(name)
        assert catalog.link(gpu.fabric).kind == "fabric"
        assert catalog.link(gpu.pcie).kind == "fabric"
    for name in catalog.names("node"):
        node = catalog.node(name)
        assert catalog.gpu(node.gpu).name == node.gpu
        assert catalog.link(node.fabric).kind == "fabric"
        assert catalog.link(node.network).kind == "network"
    for price in store.packaged("price"):
        assert price["gpu"] in catalog.names("gpu")
    for kernels in store.packaged("kernels"):
        assert set(texts(kernels, "holds_for")) <= set(catalog.names("gpu"))


@pytest.mark.parametrize("name", catalog.names("gpu"))
def test_gpus_are_physical(name: str) -> None:
    """Peaks are positive, 8-bit is not slower than 16-bit, no share exceeds the data sheet."""
    gpu = catalog.gpu(name)
    constants = gpu.constants
    assert gpu.flops_16bit > 50e12
    faster = 1.0 if name == "Gaudi 3" else 1.9  # its FP8 peak is that of BF16
    assert gpu.flops_8bit is None or gpu.flops_8bit >= faster * gpu.flops_16bit
    assert gpu.memory_bytes > 0
    assert gpu.num_sms > 0
    for share in ("mfu_gemm", "mbu_gemm", "mfu_attention", "mbu_attention", "mbu_elementwise"):
        assert 0.1 < getattr(constants, share) <= 1
    assert 0 < constants.mixed_mfu <= 1
    assert 1 <= constants.smooth_p <= 4
    assert 1e-6 <= constants.fixed_s < 1e-5
    assert 0 <= constants.attention_block_s < 1e-5
    assert constants.accuracy in {"measured", "fitted", "data-sheet"}


@pytest.mark.parametrize("name", catalog.names("model"))
def test_parameters_and_cache_follow_from_the_shape(name: str) -> None:
    """A typing error in one dimension shows in the sum."""
    m = catalog.model(name)
    assert m.num_params == pytest.approx(count_params(m), rel=0.01)
    cached = [
        a.kv_lora_rank + a.qk_rope_dim
        if isinstance(a, LatentAttention)
        else 2 * a.num_kv_heads * a.head_dim
        for a in (layer.mixer for layer in m.each_layer)
        if isinstance(a, Attention | LatentAttention)
    ]
    assert m.kv_bytes_per_token == 2 * sum(cached)
    others = [layer for layer in m.each_layer if isinstance(layer.mixer, Recurrent | None)]
    assert len(cached) + len(others) == m.num_layers


@pytest.mark.parametrize(
    ("name", "billions"),
    [("llama-30b", 32.5), ("codellama-34b", 33.7), ("qwen2-72b", 72.7), ("gpt-oss-120b", 116.8)],
)
def test_published_sizes_are_met(name: str, billions: float) -> None:
    """EcoServe's three models, and one with experts, against their published sizes."""
    assert catalog.model(name).num_params / 1e9 == pytest.approx(billions, rel=0.005)


def test_gpt_oss_slides_on_alternate_layers() -> None:
    """Half of its layers attend to the last 128 tokens only."""
    spec = catalog.model("gpt-oss-120b")
    reaches = [layer.mixer.reach for layer in spec.each_layer if layer.mixer]
    assert reaches == [Reach(128), None] * 18


def test_ecoserve_testbeds_are_as_published() -> None:
    """Section 5 of the paper: PCIe and 10 GbE, PCIe and 25 Gb RoCE, NVLink and 8 x 400 Gb."""
    found = [catalog.node(n) for n in ("ecoserve-l20", "ecoserve-a800", "ecoserve-h100")]
    assert [n.gpus_per_node for n in found] == [8, 8, 8]
    assert [n.fabric for n in found] == ["pcie4-l20", "pcie4", "nvlink4"]
    rates = [catalog.link(n.network).bandwidth * n.num_nics * 8 / 1e9 for n in found]
    assert rates == pytest.approx([10, 25, 3200])


@pytest.mark.parametrize("name", catalog.names("link"))
def test_links_reach_at_most_their_data_sheet(name: str) -> None:
    """Shares above one would hide a wrong unit."""
    link = catalog.link(name)
    assert 1e9 <= link.bandwidth <= 1e12
    assert 0 < link.efficiency <= 1
    assert 0 < link.allreduce_efficiency <= 1
    assert 0 < link.latency_s < 1e-3


def test_the_ideal_engine_costs_nothing() -> None:
    """Tests and theory need an engine whose step is the GPU's work alone."""
    ideal = catalog.engine("ideal")
    host = (ideal.host_before_s, ideal.host_after_s, ideal.host_per_seq_before_s)
    assert (*host, ideal.host_per_seq_after_s, ideal.issue_s, ideal.reserved_bytes) == (0.0,) * 6
    assert (ideal.block_size, ideal.gpu_memory_utilization, ideal.watermark) == (16, 0.9, 0.01)


# names


@pytest.mark.parametrize(
    ("short", "full"),
    [
        ("A100-80GB", "A100-80GB SXM"),
        ("a100", "A100-80GB SXM"),
        ("A100 40gb", "A100-40GB SXM"),
        ("H100", "H100 SXM"),
        ("h100_sxm", "H100 SXM"),
        ("H200", "H200 SXM"),
        ("B200", "B200 SXM"),
        ("4090", "RTX 4090"),
        ("rtx4090", "RTX 4090"),
        ("A800", "A800-80GB SXM"),
        ("910B3", "Ascend 910B3"),
        ("RTX PRO 6000", "RTX PRO 6000 Blackwell Server"),
        ("L4", "L4"),
    ],
)
def test_gpus_are_found_by_short_forms(short: str, full: str) -> None:
    """People write what is on the box."""
    assert catalog.gpu(short).name == full


def test_models_are_found_by_repository_name() -> None:
    """The name of the weights on the hub is the one people have at hand."""
    assert catalog.model("meta-llama/Llama-3.1-8B").name == "llama-3.1-8b"
    assert catalog.model("Qwen/Qwen2.5-72B").name == "qwen2.5-72b"
    assert catalog.model("CodeLlama2-34B").name == "codellama-34b"


@pytest.mark.parametrize(
    ("kind", "name", "candidates"),
    [
        ("gpu", "RTX", ["RTX 4090", "RTX 5090", "RTX A6000", "RTX PRO 6000 Blackwell Server"]),
        ("gpu", "910b", ["Ascend 910B3", "Ascend 910B4"]),
        ("model", "llama-3", ["llama-3-8b", "llama-3.1-70b"]),
    ],
)
def test_an_ambiguous_name_lists_the_candidates(
    kind: str, name: str, candidates: list[str]
) -> None:
    """Picking one of them silently would be a wrong answer that looks right."""
    with pytest.raises(ConfigError, match="begins") as caught:
        GETTERS[kind](name, "some.key")
    assert caught.value.key == "some.key"
    assert all(repr(candidate) in str(caught.value) for candidate in candidates)


def test_codellama_is_no_candidate_for_llama_3() -> None:
    """A prefix counts from the start of a word, not inside one."""
    with pytest.raises(ConfigError) as caught:
        catalog.model("llama-3")
    assert "codellama" not in str(caught.value)


def test_an_unknown_name_offers_the_nearest() -> None:
    """A slip of one letter should cost one line to mend."""
    with pytest.raises(ConfigError, match="'codellama-34b'"):
        catalog.model("codelama-34b")
    with pytest.raises(ConfigError, match=r"catalog --kind node. lists"):
        catalog.node("???")
    with pytest.raises(ConfigError) as caught:
        catalog.gpu("L40")  # no L40S
    assert "L40S" not in str(caught.value)
    with pytest.raises(ConfigError, match="no such kind"):
        catalog.names("gpus")


def test_search_finds_words_in_any_order() -> None:
    """The list on the command line is the same for every kind."""
    assert [e.name for e in catalog.search("bridge nvlink3", "link")] == [
        "nvlink3-bridge",
        "nvlink3-bridge-a40",
        "nvlink3-bridge-a800",
    ]
    assert {e.kind for e in catalog.search("")} == set(catalog.KINDS)
    assert len(catalog.search("")) == len(ALL)
    assert all(e.summary and e.source for e in catalog.search(""))
    assert catalog.search("no such thing at all") == []


def test_only_the_files_that_are_needed_are_read() -> None:
    """The length tables are most of the bytes, and few runs ask for the catalogue's."""
    store.packaged.cache_clear()
    store.packaged_table.cache_clear()
    catalog.gpu("H100")
    catalog.link("nvlink4")
    assert store.packaged.cache_info().currsize == 5  # gpu, kernels, experts, price, link


# prices


def test_the_default_price_is_the_lowest_dated_on_demand_one_in_dollars() -> None:
    """Cheaper offers of other kinds, currencies or unknown date do not count."""
    offer = Price(
        per_gpu_hour=2.0,
        currency="USD",
        tier="on-demand",
        provider="a",
        date="2026-01",
        source="test",
    )
    offers = (
        replace(offer, per_gpu_hour=3.0),
        offer,
        replace(offer, per_gpu_hour=0.1, tier="community"),
        replace(offer, per_gpu_hour=0.2, tier="serverless"),
        replace(offer, per_gpu_hour=0.3, tier="reserved"),
        replace(offer, per_gpu_hour=0.4, tier="list"),
        replace(offer, per_gpu_hour=0.5, currency="CNY"),
        replace(offer, per_gpu_hour=0.6, date=""),
    )
    gpu = catalog.gpu("H100")
    assert catalog.default_price(replace(gpu, prices=offers)) == offer
    assert catalog.default_price(replace(gpu, prices=offers[2:])) is None
    assert catalog.default_price(replace(gpu, prices=())) is None


@pytest.mark.parametrize(
    ("name", "dollars"), [("H100", 3.99), ("A100-80GB PCIe", 1.39), ("MI300X", 1.99), ("L20", None)]
)
def test_default_prices_of_known_parts(name: str, dollars: float | None) -> None:
    """Read off the table of prices by hand; the L20 has a price in yuan only."""
    price = catalog.default_price(catalog.gpu(name))
    assert (price.per_gpu_hour if price else None) == dollars


def test_prices_are_listed_by_gpu_provider_and_terms() -> None:
    """Every price of the file once, with its source; words choose as they do for other kinds."""
    found = catalog.search("", "price")
    assert len(found) == len(store.packaged("price"))
    assert all(entry.source for entry in found)
    assert [e.name for e in catalog.search("l20 cny", "price")] == ["L20"]
    assert not any(entry.kind == "price" for entry in catalog.search(""))


def test_the_prices_of_the_boute_paper_are_there_as_list_prices() -> None:
    """Its examples can be priced as printed; whose offers they were is not known."""
    quoted = {
        (name, p.per_gpu_hour)
        for name in catalog.names("gpu")
        for p in catalog.gpu(name).prices
        if p.provider == "BOute paper" and p.tier == "list"
    }
    assert {("RTX 5090", 0.89), ("RTX 4090", 0.59), ("H100 SXM", 2.69)} <= quoted


# lengths


def draws(name: str, num: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw lengths from a table as its docstring says: linear between quantiles."""
    table = catalog.lengths(name)
    rng = np.random.default_rng(7)
    u, v = rng.random(num), rng.random(num)
    slice_of = np.minimum(
        (u * len(table.output_by_prompt)).astype(int), len(table.output_by_prompt) - 1
    )
    prompt = np.interp(u, table.levels, table.prompt)
    output = np.empty(num)
    for i, quantiles in enumerate(table.output_by_prompt):
        output[slice_of == i] = np.interp(v[slice_of == i], table.levels, quantiles)
    return prompt, output


@pytest.mark.parametrize("name", catalog.names("lengths"))
def test_a_draw_has_the_mean_of_the_measured_set(name: str) -> None:
    """Linear interpolation between quantiles must not add or lose tokens: 1 %, by integral."""
    table = catalog.lengths(name)
    prompt = np.trapezoid(table.prompt, table.levels)
    outputs = [np.trapezoid(q, table.levels) for q in table.output_by_prompt]
    assert prompt == pytest.approx(table.prompt_mean, rel=0.01)
    assert np.mean(outputs) == pytest.approx(table.output_mean, rel=0.01)


@pytest.mark.parametrize("name", ["sharegpt-etalon", "bwb-etalon", "alpaca-ecoserve"])
def test_whole_tokens_drawn_have_the_mean_too(name: str) -> None:
    """Rounded to whole tokens, within four standard errors or 1 %, whichever is more."""
    table = catalog.lengths(name)
    for drawn, mean in zip(
        draws(name, 200_000), (table.prompt_mean, table.output_mean), strict=True
    ):
        whole = np.maximum(1, np.rint(drawn))
        error = 4 * whole.std() / np.sqrt(len(whole))
        assert abs(whole.mean() - mean) < max(error, 0.01 * mean)


@pytest.mark.parametrize("name", catalog.names("lengths"))
def test_quantiles_are_sorted_and_whole_prompts(name: str) -> None:
    """Ten slices where both lengths were measured, one where only moments are known."""
    table = catalog.lengths(name)
    assert table.levels[0] == 0
    assert table.levels[-1] == 1
    assert len(table.levels) >= 41
    assert table.licence
    for values in (table.levels, table.prompt, *table.output_by_prompt):
        assert list(values) == sorted(values)
        assert len(values) == len(table.levels)
    assert table.prompt[0] >= 1
    assert min(q[0] for q in table.output_by_prompt) >= 1
    assert len(table.output_by_prompt) == (10 if table.num_measured else 1)


def test_the_joint_tables_keep_the_dependence_of_output_on_prompt() -> None:
    """Translations grow with their source: rank correlation 0.8 in the set, near it in draws."""
    prompt, output = draws("bwb-etalon", 50_000)
    assert np.corrcoef(prompt, output)[0, 1] == pytest.approx(0.78, abs=0.04)
    prompt, output = draws("sharegpt-ecoserve", 50_000)
    assert abs(np.corrcoef(prompt, output)[0, 1]) < 0.02


@pytest.mark.parametrize("name", list(derive.FITTED))
def test_fitted_tables_have_the_published_medians(name: str) -> None:
    """Mean and median are all that is published of EcoServe's sets."""
    table = catalog.lengths(name)
    prompt, output = derive.FITTED[name]
    assert np.interp(0.5, table.levels, table.prompt) == pytest.approx(prompt.median, rel=0.02)
    found = np.interp(0.5, table.levels, table.output_by_prompt[0])
    assert found == pytest.approx(output.median, rel=0.02)


def test_the_fitted_prompt_of_longbench_is_a_truncated_normal() -> None:
    """Against SciPy: some normal between 1 and 4096 has these quartiles, median and mean."""
    table = catalog.lengths("longbench-ecoserve")
    low, middle, high = np.interp([0.25, 0.5, 0.75], table.levels, table.prompt)
    best = min(
        (
            abs(law.ppf(0.25) - low) + abs(law.ppf(0.5) - middle) + abs(law.ppf(0.75) - high)
            for mu in np.arange(2400, 3400, 20)
            for sigma in np.arange(500, 1500, 20)
            for law in [truncnorm((1 - mu) / sigma, (4096 - mu) / sigma, mu, sigma)]
        ),
    )
    assert best < 30


# users' files


def write(tmp_path: Path, text: str, name: str = "mine.toml") -> Path:
    """Write a catalogue file."""
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return path


def test_a_users_gpu_model_and_price_are_found(tmp_path: Path) -> None:
    """What docs/catalogue.md tells users to write works."""
    mine = Catalog().with_file(
        write(
            tmp_path,
            """
            [[gpu]]
            name = "H100 NVL"
            aliases = ["NVL"]
            like = "H100 SXM"
            memory_gb = 94
            memory_mib = 95830
            bandwidth_gb_s = 3900
            fabric = "pcie5"
            source = "NVIDIA H100 NVL data sheet"

            [[price]]
            gpu = "nvl"
            per_gpu_hour = 2.5
            currency = "USD"
            tier = "on-demand"
            provider = "us"
            date = "2026-10"
            source = "our contract"

            [[model]]
            name = "tiny"
            num_layers = 2
            hidden_size = 64
            num_heads = 4
            num_kv_heads = 2
            head_dim = 16
            ffn_dim = 128
            vocab_size = 100
            gated_mlp = true
            tied_embeddings = true
            max_position = 512
            source = "made up"
            """,
        )
    )
    gpu = mine.gpu("nvl")
    assert (gpu.name, gpu.memory_bytes, gpu.num_sms) == ("H100 NVL", 95830 * 2**20, 132)
    assert gpu.constants.accuracy == "data-sheet"
    price = catalog.default_price(gpu)
    assert price is not None
    assert price.per_gpu_hour == 2.5
    tiny = mine.model("tiny")
    assert tiny.num_params == count_params(tiny) + tiny.hidden_size  # and the last norm
    assert tiny.kv_bytes_per_token == 2 * 2 * 2 * 2 * 16
    assert [layer.mlps for layer in tiny.each_layer] == [(DenseMlp(128),)] * 2


def slower_link(tmp_path: Path, efficiency: float) -> Path:
    """Write a file whose ``pcie4`` reaches this share of its bandwidth."""
    text = f'[[link]]\nname = "PCIe4"\nlike = "pcie4"\nefficiency = {efficiency}\nsource = "us"\n'
    return write(tmp_path, text, f"{efficiency}.toml")


def test_a_users_entry_replaces_the_packaged_one_in_its_own_catalogue_alone(
    tmp_path: Path,
) -> None:
    """A calibration of one's own wins where it is named, and nobody else sees it."""
    before = catalog.link("pcie4")
    half, most = (Catalog().with_file(slower_link(tmp_path, share)) for share in (0.5, 0.9))
    assert half.link("pcie4") == replace(before, name="PCIe4", efficiency=0.5, source="us")
    assert most.link("pcie4").efficiency == 0.9
    assert half.link("pcie4").efficiency == 0.5
    assert catalog.link("pcie4") == Catalog().link("pcie4") == before
    assert len(half.names("link")) == len(catalog.names("link"))
    # The later of two files wins, whichever it is.
    assert half.with_file(slower_link(tmp_path, 0.9)).link("pcie4").efficiency == 0.9
    assert most.with_file(slower_link(tmp_path, 0.5)).link("pcie4").efficiency == 0.5


def test_a_catalogue_travels_to_other_processes_without_the_packaged_entries(
    tmp_path: Path,
) -> None:
    """Every run of a comparison takes it along: 100 kB of length tables would be too much."""
    mine = Catalog().with_file(slower_link(tmp_path, 0.5))
    mine.lengths("sharegpt-etalon")  # what was looked up stays behind
    sent = pickle.dumps(mine)
    assert pickle.loads(sent) == mine
    assert len(sent) < 2000


def test_like_does_not_take_over_what_the_entry_contradicts(tmp_path: Path) -> None:
    """Such as the driver's old total, the old parameters, and limits that hold for other GPUs."""
    mine = Catalog().with_file(
        write(
            tmp_path,
            """
            [[gpu]]
            name = "H100 with more"
            like = "H100"
            memory_gb = 96
            source = "made up"

            [[model]]
            name = "half"
            like = "llama-2-7b"
            num_layers = 16
            source = "made up"

            [[engine]]
            name = "small steps"
            like = "vllm-0.19"
            chunk_size = 100
            max_num_seqs = 4
            source = "made up"
            """,
        )
    )
    steps = mine.engine("small steps").on(catalog.gpu("H100"))  # where vLLM's own are larger
    assert (steps.chunk_size, steps.max_num_seqs) == (100, 4)
    assert mine.gpu("H100 with more").memory_bytes == 96e9
    half, whole = mine.model("half"), catalog.model("llama-2-7b")
    assert half.num_params == pytest.approx(count_params(half), rel=1e-4)
    assert half.kv_bytes_per_token == whole.kv_bytes_per_token / 2


NAMED = sorted(table for table, keys in tables.TABLES.items() if "like" in keys)


@pytest.mark.parametrize("table", NAMED)
def test_an_entry_like_another_needs_a_name_of_its_own(table: str, tmp_path: Path) -> None:
    """Else it would take the place of the other one, and nobody asked for that."""
    name = str(store.packaged(table)[0]["name"])
    text = f'[[{table}]]\nlike = "{name}"\nsource = "us"\n'
    with pytest.raises(ConfigError) as caught:
        Catalog().with_file(write(tmp_path, text))
    assert str(caught.value) == (
        f"mine.toml: {table}[0].name: the key is missing. Add name: name in the catalogue."
    )
    named = Catalog().with_file(write(tmp_path, text + 'name = "ours"\n'))
    assert "ours" in named.table(table).rows
    assert name in named.table(table).rows


GPU_TEXT = '[[gpu]]\nname = "x"\nlike = "L4"\nsource = "y"\n'


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('[[gpu]]\nname = "x"\nsource = "y"', "gpu[0].vendor: the key is missing"),
        (
            GPU_TEXT + GPU_TEXT.replace('"x"', '"X"'),
            "gpu[1].name = 'X': is also the name of gpu[0]. Rename one of them.",
        ),
        (GPU_TEXT + 'memory_gb = "many"', "gpu[0].memory_gb = 'many': must be a number"),
        (GPU_TEXT + "num_sms = 1.5", "gpu[0].num_sms = 1.5: must be a whole number"),
        (GPU_TEXT + "tflops = 3", "gpu[0].tflops = 3: gpu has no such key"),
        (GPU_TEXT + 'fabric = "nvlink9"', "gpu[0].fabric = 'nvlink9': no such link"),
        (GPU_TEXT.replace("L4", "L5"), "gpu[0].like = 'L5': no such gpu"),
        ('[[gpus]]\nname = "x"', "gpus = 'gpus': the catalogue has no such table"),
        ('[gpu]\nname = "x"', "Write [[gpu]]"),
        (
            '[[link]]\nname = "x"\nlike = "pcie4"\nsource = "y"\nefficiency = 78',
            "link[0].efficiency = 78: must be a number from 0 to 1",
        ),
        (
            '[[engine]]\nname = "x"\nlike = "ideal"\nsource = "y"\noverlaps_host = 1',
            "engine[0].overlaps_host = 1: must be true or false",
        ),
        (
            '[[lengths]]\nname = "x"\nlike = "bwb-etalon"\nsource = "y"\nprompt = [1, 2]',
            "lengths[0].prompt = 2: must have 51 values",
        ),
    ],
)
def test_a_users_mistake_is_one_line_that_names_the_key(
    tmp_path: Path, text: str, words: str
) -> None:
    """Key, value, rule, remedy."""
    with refused(words, "mine.toml"):
        Catalog().with_file(write(tmp_path, text))


def test_a_file_that_cannot_be_read_says_why(tmp_path: Path) -> None:
    """No traceback for a wrong path or a slip in the TOML."""
    with pytest.raises(DataError, match="cannot be read"):
        Catalog().with_file(tmp_path / "absent.toml")
    with pytest.raises(DataError, match="is not TOML"):
        Catalog().with_file(write(tmp_path, "gpu = = 1"))


# against the measured sets


def test_gpus_agree_with_the_table_of_data_sheet_facts() -> None:
    """Every row of the table is there with its values; more parts have other sources."""
    facts = rows("gpu_specs", "gpu_specs.csv")
    packaged = {str(r["name"]): r for r in store.packaged("gpu")}
    assert set(packaged) == {r["gpu"] for r in facts} | {"RTX 5090", "GH200 96GB", *ON_PAPER}
    for fact in facts:
        row, gpu = packaged[fact["gpu"]], catalog.gpu(fact["gpu"])
        assert row["memory_gb"] == float(fact["memory_gb"])
        assert gpu.memory_bytes == pytest.approx(float(fact["memory_gb"]) * 1e9, rel=0.08)
        assert gpu.memory_bandwidth == pytest.approx(float(fact["mem_bw_gbs"]) * 1e9)
        assert gpu.flops_16bit == pytest.approx(float(fact["fp16_bf16_dense_tflops"]) * 1e12)
        eight_bit = fact["fp8_dense_tflops"] or fact["int8_dense_tops"]
        assert gpu.flops_8bit == (pytest.approx(float(eight_bit) * 1e12) if eight_bit else None)
        assert gpu.num_sms == int(fact["sm_count"])
        assert catalog.link(gpu.pcie).bandwidth / 1e9 == float(fact["pcie_gbs_per_direction"])
        if fact["link_gbs_per_direction"] and "bridge" not in fact["intra_node_link"]:
            per_direction = catalog.link(gpu.fabric).bandwidth / 1e9
            assert per_direction == float(fact["link_gbs_per_direction"])
        assert fact["source"].replace('"', "") in gpu.source


def test_prices_agree_with_the_table_of_prices() -> None:
    """Every priced row is there, with currency, provider and the provider's words."""
    for row in rows("gpu_prices", "gpu_prices.csv"):
        if not row["price_per_gpu_hour"]:
            continue
        found = [
            p
            for p in catalog.gpu(row["gpu"]).prices
            if (p.per_gpu_hour, p.currency, p.provider)
            == (float(row["price_per_gpu_hour"]), row["currency"], row["provider"])
        ]
        assert any(row["terms"] in p.source and p.date for p in found), row


def test_models_agree_with_the_table_of_configurations() -> None:
    """Every row is there; the published size within 1 % (later ones: test_model_files)."""
    facts = rows("model_arch", "model_arch.csv")
    for fact in facts:
        m = catalog.model(fact["model"].split(" (")[0])
        shape = (m.num_layers, m.hidden_size, m.num_heads, m.num_kv_heads, m.head_dim, m.ffn_dim)
        has_dense = fact["dense_layers"] != "0"
        width = "ffn_dim" if has_dense else "moe_ffn_dim"
        columns = ("layers", "hidden", "heads", "kv_heads", "head_dim", width)
        assert shape == tuple(int(fact[c]) for c in columns)
        assert m.num_params / 1e9 == pytest.approx(float(fact["params_b_nominal"]), rel=0.01)
        assert m.kv_bytes_per_token == int(fact["kv_bytes_per_token_16bit"])
        assert (m.vocab_size, m.max_position) == (int(fact["vocab"]), int(fact["max_position"]))
        dense = [isinstance(layer.mlps[0], DenseMlp) for layer in m.each_layer]
        assert sum(dense) == int(fact["dense_layers"])


def test_the_length_tables_are_those_of_the_measured_sets() -> None:
    """The committed file is what the script writes."""
    for each in derive.MEASURED:
        measured(*each.path.split("/"))
    text = Path(derive.__file__).with_name("lengths.toml").read_text("utf-8")
    assert text == derive.derive(DATA)


def test_the_kv_transfer_of_mooncake_is_met() -> None:
    """20 MB to 4.5 GB over eight 200 Gb/s ports: mean error below 5 %."""
    facts = rows("published_anchors", "kv_transfer.csv")
    link = catalog.link("roce-200")
    size = np.array([float(r["kv_size_mb"]) for r in facts]) * 1e6
    time = np.array([float(r["transfer_ms"]) for r in facts]) * 1e-3
    predicted = link.latency_s + size / (8 * link.bandwidth * link.efficiency)
    assert np.abs(predicted / time - 1).mean() < 0.05


def test_the_host_time_of_the_sarathi_profile_is_vidurs() -> None:
    """Latest revision, one worker, without the GPU's part: within 20 % of the measured means."""
    facts = rows("vidur_cpu_overhead", "a100_latest.csv")
    engine = catalog.engine("sarathi")
    parts = ("schedule", "prepare_inputs_e2e", "sampler_e2e", "process_model_outputs")
    names = [*(f"{part}_mean" for part in parts), "ray_comm_time_median"]
    errors = []
    for row in facts:
        if row["tensor_parallel_degree"] != "1":
            continue
        time = sum(float(row[n]) for n in names) * 1e-3
        per_seq = engine.host_per_seq_before_s + engine.host_per_seq_after_s
        predicted = engine.host_before_s + engine.host_after_s + per_seq * int(row["batch_size"])
        errors.append(abs(predicted / time - 1))
    assert np.mean(errors) < 0.2
