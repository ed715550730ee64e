"""Expert and data parallelism: who has which experts, what is sent, and how busy the busiest is."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from simcluster import catalog
from simcluster.catalog.layers import Experts
from simcluster.config import ModelConfig
from simcluster.errors import ConfigError
from simcluster.rng import stream
from simcluster.roofline.collectives import ExpertLinks, all_to_all_s
from simcluster.roofline.layout import (
    Layout,
    busiest_rows,
    busiest_touched,
    check_layout,
    groups_visited,
    largest_of_normals,
)
from simcluster.roofline.memory import check_tp, kv_blocks, weight_bytes_per_gpu
from simcluster.roofline.operators import experts_touched, layer_operators
from simcluster.testing.specs import a100, ideal_engine, llama_2_7b, vllm_engine

DEEPSEEK = Experts(num_experts=256, num_active=8, ffn_dim=2048, shared_ffn_dim=2048)
SMALL = Experts(num_experts=16, num_active=2, ffn_dim=256)
H800 = replace(catalog.link("nvlink4-h800"), name="nvlink")
CX7 = catalog.link("ib-400")


def moe(**changes: object) -> ModelConfig:
    """A model of two layers with 16 experts, of which a token visits 2."""
    shape: dict[str, object] = {"num_layers": 2, "hidden_size": 512, "num_heads": 8}
    shape |= {"num_kv_heads": 4, "head_dim": 64, "ffn_dim": 1024, "vocab_size": 1000}
    shape |= {"num_experts": 16, "num_experts_active": 2, "moe_ffn_dim": 256, "name": "moe"}
    return ModelConfig(spec=llama_2_7b(**shape | changes), max_model_len=160)


def routed(experts: Experts, num_tokens: int, draws: int) -> Any:
    """Draw the experts of tokens at random, shape ``(draws, num_tokens, num_experts)``, by hand."""
    rng = stream(0, "routing", str(num_tokens))
    keys = rng.random((draws, num_tokens, experts.num_experts))
    chosen = keys.argsort(axis=2)[:, :, : experts.num_active]
    mask = np.zeros(keys.shape, dtype=bool)
    np.put_along_axis(mask, chosen, True, axis=2)
    return mask


# What each GPU holds ----------------------------------------------------------------------------


@pytest.mark.parametrize("tp_size", [1, 2, 4])
def test_without_ep_and_dp_a_layer_is_what_it_was(tp_size: int) -> None:
    """A feature at its zero setting equals the feature off, to the bit."""
    model = moe()
    (layer, _), *_ = model.spec.layers
    plain = layer_operators(model, layer, tp_size, 7)
    assert layer_operators(model, layer, tp_size, 7, Layout(tp_size), 7) == plain


def test_experts_are_spread_over_all_gpus_and_the_rest_is_replicated_by_rank() -> None:
    """Counted by hand: 16 experts of 3 x 512 x 256 weights, in 16 bits, and two layers."""
    model, each = moe(), 3 * 512 * 256 * 2
    layers = model.spec.num_layers
    whole = weight_bytes_per_gpu(model, 1)
    rest = whole - layers * 16 * each
    assert weight_bytes_per_gpu(model, 1, layout=Layout(1, 8, 8)) == rest + layers * 2 * each
    assert weight_bytes_per_gpu(model, 1, layout=Layout(1, 8, 1)) == rest + layers * 2 * each
    # Two replicas a group on top of the two of its own.
    replicated = Layout(1, 8, 8, redundant_experts=16)
    assert weight_bytes_per_gpu(model, 1, layout=replicated) == rest + layers * 4 * each
    # A group of two GPUs has four experts, each split in two.
    assert weight_bytes_per_gpu(model, 4, layout=Layout(4, 2, 4)) == pytest.approx(
        weight_bytes_per_gpu(model, 4) - layers * 4 * each + layers * 2 * each
    )


def test_the_kv_cache_of_a_rank_has_what_its_weights_leave() -> None:
    """A data-parallel rank has blocks of its own, as many as an instance with as much free."""
    model, gpu, engine = moe(), a100(), ideal_engine()
    plain = kv_blocks(model, gpu, engine, 1, key="tp_size")
    layout = Layout(1, 8, 8)
    ranks = kv_blocks(model, gpu, engine, 1, key="tp_size", layout=layout)
    freed = weight_bytes_per_gpu(model, 1) - weight_bytes_per_gpu(model, 1, layout=layout)
    per_block = model.kv_bytes_per_token * engine.block_size
    assert ranks - plain == pytest.approx(freed / per_block, abs=1)


def test_work_of_experts_is_that_of_all_ranks_and_attention_that_of_one() -> None:
    """Rows of the grouped kernels times GPUs is what all tokens ask for, beside the imbalance."""
    model = moe()
    (layer, _), *_ = model.spec.layers
    tokens, ranks = 1000, 4
    layout = Layout(1, ranks, ranks)
    operators = {
        op.name: op for op in layer_operators(model, layer, 1, tokens, layout, ranks * tokens)
    }
    alone = {op.name: op for op in layer_operators(model, layer, 1, tokens)}
    assert operators["qkv_proj"] == alone["qkv_proj"]
    up = operators["experts_up_proj"]
    assert up.groups == 4  # all of its four experts
    mean = ranks * tokens * 2 / ranks
    assert mean < up.rows * up.groups < 1.1 * mean
    assert operators["gather"].bytes == 2 * ranks * tokens * 512
    assert operators["scatter"].bytes == operators["gather"].bytes


# The busiest group ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("experts", "groups", "num_tokens"),
    [(SMALL, 4, 3), (SMALL, 8, 64), (DEEPSEEK, 8, 16), (DEEPSEEK, 8, 128), (DEEPSEEK, 32, 64)],
)
def test_the_busiest_group_is_what_random_routing_gives(
    experts: Experts, groups: int, num_tokens: int
) -> None:
    """Closed form against drawn routings."""
    draws = 200
    mask = routed(experts, num_tokens, draws)
    by_group = mask.reshape(draws, num_tokens, groups, -1)
    rows = by_group.sum(axis=(1, 3)).max(axis=1).mean()
    distinct = by_group.any(axis=1).sum(axis=2).max(axis=1).mean()
    layout = Layout(1, groups, groups)
    touched = experts_touched(experts.num_experts, experts.num_active, num_tokens)
    assert busiest_rows(experts, layout, num_tokens) == pytest.approx(rows, rel=0.1)
    assert busiest_touched(experts, layout, num_tokens, touched) == pytest.approx(distinct, rel=0.1)


def test_a_token_visits_as_many_groups_as_random_routing_says() -> None:
    """Closed form against drawn routings."""
    mask = routed(DEEPSEEK, 4000, 1)[0].reshape(4000, 8, -1)
    assert groups_visited(DEEPSEEK, 8) == pytest.approx(
        mask.any(axis=2).sum(axis=1).mean(), rel=0.01
    )


def test_the_largest_of_normals_is_that_of_the_tables() -> None:
    """Expected values of the largest order statistic (Harter 1961, table 1)."""
    for count, value in ((2, 0.5642), (4, 1.0294), (8, 1.4236), (16, 1.7660), (32, 2.0697)):
        assert largest_of_normals(count) == pytest.approx(value, abs=0.03)


def test_skew_and_replicas_change_the_busiest_group() -> None:
    """Skew beyond chance counts; never more than all tokens times the experts of a group."""
    layout = Layout(1, 8, 8)
    skewed = layout._replace(expert_skew=3.0)
    assert busiest_rows(DEEPSEEK, skewed, 4096) == 3.0 * 4096
    assert busiest_rows(DEEPSEEK, layout._replace(expert_skew=1000.0), 4) == 4 * 8
    more = layout._replace(redundant_experts=32)
    assert more.local_experts(DEEPSEEK) == 36
    # 32 tokens visit a few more of 288 than of 256, and each group has a few more to visit.
    few, many = (
        busiest_touched(DEEPSEEK, one, 32, experts_touched(256 + one.redundant_experts, 8, 32))
        for one in (layout, more)
    )
    assert few < many < 1.1 * few


# What is sent -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ep_size", "dispatch_us", "combine_us"),
    [
        (8, 77, 114),
        (16, 118, 195),
        (32, 155, 273),
        (64, 173, 314),
        (128, 192, 369),
        (256, 194, 360),
    ],
)
def test_low_latency_times_are_those_that_deepep_publishes(
    ep_size: int, dispatch_us: float, combine_us: float
) -> None:
    """The table of docs/legacy.md: 128 tokens of 7168 numbers on H800, fp8 there, 16 bits back."""
    layout = Layout(1, ep_size, ep_size, all_to_all="low-latency")
    links = ExpertLinks(H800, H800, CX7 if ep_size > 8 else None, 8, 1.0)
    there = all_to_all_s(links, layout, DEEPSEEK, 128 * 7168 * (1 + 4 / 128))
    back = all_to_all_s(links, layout, DEEPSEEK, 128 * 7168 * 2)
    assert there == pytest.approx(dispatch_us * 1e-6, rel=0.1)
    assert back == pytest.approx(combine_us * 1e-6, rel=0.1)


@pytest.mark.parametrize(("ep_size", "gb_per_s"), [(16, 43), (32, 57)])
def test_normal_kernels_reach_the_bandwidths_that_deepep_publishes(
    ep_size: int, gb_per_s: float
) -> None:
    """The same page: 4096 tokens combined in 16 bits, bytes of a token once per node it visits.

    On two nodes NVLink decides, by what every node hands on; on four the NICs do. From EP 64 on the
    published runs visit at most 4 nodes (top-4 groups), which is not modelled.
    """
    nodes, copy = ep_size // 8, 4096 * 7168 * 2.0
    apart = np.prod([(256 - 256 // nodes - k) / (256 - k) for k in range(8)])
    links = ExpertLinks(H800, H800, CX7, 8, 1.0)
    layout = Layout(1, ep_size, ep_size, all_to_all="throughput")
    made = nodes * (1 - apart) * copy / all_to_all_s(links, layout, DEEPSEEK, copy)
    assert made == pytest.approx(gb_per_s * 1e9, rel=0.12)


# What engines refuse ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layout", "engine", "message"),
    [
        (Layout(4, 1, 3), {}, "does not divide the 4 GPUs"),
        (
            Layout(32, 1, 32),
            {},
            "does not divide the 16 experts of moe. Use a divisor, or redundant",
        ),
        (Layout(4, 2, 4), {"expert_parallel": "all"}, "Use 1 or 8"),
        (Layout(2, 2, 1), {"expert_parallel": "none"}, "dp_size = 2: engine vllm-like has neither"),
        (Layout(2, 1, 2), {"expert_parallel": "none"}, "ep_size = 2: engine vllm-like has neither"),
        (Layout(2, 1, 2, all_to_all="throughput"), {}, "every GPU has all tokens"),
        (Layout(1, 4, 1, all_to_all="low-latency"), {}, "ep_size = 4"),
        (Layout(1, 4, 1, redundant_experts=4), {}, "replicas of experts need"),
        (Layout(1, 4, 1, expert_skew=2.0), {}, "equal work"),
        (Layout(4, redundant_experts=4), {}, "has no meaning"),
        (Layout(1, 4, 4, redundant_experts=2), {}, "16 experts and 2 replicas"),
    ],
)
def test_layouts_that_engines_refuse_are_refused(
    layout: Layout, engine: dict[str, Any], message: str
) -> None:
    """With one line: key, value, rule, remedy."""
    with pytest.raises(ConfigError) as caught:
        check_layout(moe(), replace(vllm_engine(), **engine), layout, key="strategy.s.tp_size")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("layout", [Layout(1, 2), Layout(2, 1, 2)])
def test_a_model_without_experts_has_neither(layout: Layout) -> None:
    """Data-parallel ranks of a dense model are instances, and it has no experts to spread."""
    dense = ModelConfig(spec=llama_2_7b(), max_model_len=160)
    with pytest.raises(ConfigError, match="has no experts"):
        check_layout(dense, vllm_engine(), layout, key="tp_size")


def test_whole_experts_need_no_divisible_width() -> None:
    """Blocks of 128 weights cannot be cut over 8 GPUs of 256 columns; whole experts are not cut."""
    blockwise = moe(moe_ffn_dim=384)
    blockwise = replace(blockwise, weight_dtype="fp8-block")
    with pytest.raises(ConfigError, match="experts of width 384"):
        check_tp(blockwise, 4, key="tp_size")
    check_tp(blockwise, 4, key="tp_size", layout=Layout(4, 1, 4))
