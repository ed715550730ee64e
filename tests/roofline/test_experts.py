"""Grouped multiplications of experts: tiles as engines choose them, and the law in closed form."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from simcluster import catalog
from simcluster.catalog.expert_tiles import TILE_RULES
from simcluster.catalog.specs import ExpertKernel
from simcluster.config import EXPERT_SPREAD, ModelConfig
from simcluster.roofline.experts import kernel_for, multiplication_s, num_tiles, tile_of
from simcluster.roofline.kernels import KernelTimer
from simcluster.roofline.operators import (
    ALIGN_KERNELS,
    Operator,
    Routing,
    experts_touched,
    layer_operators,
)
from simcluster.testing import specs

KERNEL = ExpertKernel(
    name="test",
    weights="bf16",
    tiles="by-experts",
    mfu=0.5,
    small_tiles=0.8,
    mbu=0.9,
    smooth_p=1.0,
    tile_s=0.0,
    fixed_s=30e-6,
    number_s=1e-12,
    unaligned=3.0,
    source="test",
)


def grouped(tokens: int, rows: float, groups: float, width: int = 1024) -> Operator:
    """One multiplication of 4096 columns in, `width` out, for each of `groups` experts."""
    routed = rows * groups
    return Operator(
        "experts_up_proj",
        "gemm",
        2.0 * routed * 4096 * width,
        2.0 * groups * 4096 * width,
        rows=rows,
        cols=float(width),
        groups=groups,
        routing=Routing(tokens, 128, width, "bf16"),
    )


@pytest.mark.parametrize(
    ("rule", "tokens", "rows"),
    [
        # vLLM's get_default_config, up to 0.18: 16 rows up to as many tokens as experts.
        ("by-experts", 128, 16),
        ("by-experts", 129, 64),
        # The same in 0.19: by tokens alone.
        ("by-tokens", 32, 16),
        ("by-tokens", 33, 32),
        ("by-tokens", 97, 64),
        ("by-tokens", 513, 128),
        # fused_marlin_moe: the least of 8, 16, 32, 48, 64 with visits / experts / rows < 0.9.
        ("marlin", 115, 8),
        ("marlin", 116, 16),
        ("marlin", 1000, 64),
        ("block", 1, 64),
        ("block-by-tokens", 65, 64),
    ],
)
def test_tiles_are_those_of_the_engines_source(rule: str, tokens: int, rows: int) -> None:
    """128 experts, 8 a token."""
    assert tile_of(rule, tokens, 8.0 * tokens, 128.0)[0] == rows


def test_every_rule_ends_without_a_limit_and_rises() -> None:
    """A batch of any size has a tile."""
    for rule in TILE_RULES.values():
        limits = [most for most, _, _ in rule.steps]
        assert limits == sorted(limits)
        assert limits[-1] == float("inf")


@pytest.mark.parametrize("mean", [0.5, 4.0, 40.0, 400.0])
@pytest.mark.parametrize("height", [16, 64])
def test_tiles_of_experts_whose_rows_spread_are_counted_right(mean: float, height: int) -> None:
    """Against drawn visits: geometric as the law takes them, and Poisson within a third."""
    rng = np.random.default_rng(1)
    for visits, allowed in (
        (np.ceil(rng.exponential(mean, 200_000)), 0.08),
        (rng.poisson(mean, 200_000), 0.35),
    ):
        some = visits[visits > 0]
        drawn = np.ceil(some / height).mean()
        assert num_tiles(1.0, float(some.mean()), height) == pytest.approx(drawn, rel=allowed)


def test_few_rows_read_weights_and_many_multiply_whole_tiles() -> None:
    """Both ends of the law in closed form on an H100."""
    gpu = specs.h100()
    few = multiplication_s(KERNEL, gpu, grouped(1, 1.0, 8.0), grouped(1, 1.0, 8.0).routing)  # type: ignore[arg-type]  # it has one
    read_s = 2.0 * 8 * 4096 * 1024 / (0.9 * gpu.memory_bandwidth)
    padded_s = 2.0 * 8 * 16 * 4096 * 1024 / (0.5 * 0.8 * gpu.flops_16bit)
    assert few == pytest.approx(read_s + padded_s, rel=1e-6)
    many = grouped(100_000, 6250.0, 128.0)
    assert many.routing is not None
    work_s = many.flops / (0.5 * gpu.flops_16bit) + many.bytes / (0.9 * gpu.memory_bandwidth)
    found = multiplication_s(KERNEL, gpu, many, many.routing)
    assert found == pytest.approx(work_s, rel=0.01)  # half a tile of 64 in 6250 rows


def test_widths_that_16_does_not_divide_are_slower() -> None:
    """Triton reads them number by number: aiconfigurator's widths of 116 and 232."""
    gpu = specs.h100()
    times = {}
    for width in (1024, 1016):
        one = grouped(64, 4.0, 100.0, width)
        assert one.routing is not None
        times[width] = multiplication_s(KERNEL, gpu, one, one.routing)
    assert times[1016] == pytest.approx(3.0 * times[1024], rel=0.01)


def test_tuned_widths_have_a_share_and_tiles_of_their_own() -> None:
    """Engines ship tuned tiles for some numbers and widths of experts."""
    gpu, one = specs.h100(), grouped(100_000, 6250.0, 128.0)
    assert one.routing is not None
    tuned = replace(KERNEL, tuned=((128, 1024),), tuned_gain=2.0)
    plain_s, tuned_s = (multiplication_s(k, gpu, one, one.routing) for k in (KERNEL, tuned))
    assert 1.7 < plain_s / tuned_s < 2.0  # the weights are read as slowly


@pytest.mark.parametrize(
    ("gpu", "weights", "kernel"),
    [
        ("H100", "bf16", "hopper bf16 by-experts"),
        ("H100", "fp8-block", "hopper fp8-block block"),
        ("H100", "int4-g32", "hopper int4 marlin"),
        ("H100", "mxfp4", "hopper int4 marlin"),
        ("H100", "nvfp4", "hopper int4 marlin"),
        ("A100", "fp8-block", "mma.sync int4 marlin"),
        ("B200", "nvfp4", "blackwell nvfp4 trtllm"),
        ("B200", "mxfp4", "blackwell mxfp4 trtllm"),
        ("B200", "fp8", "blackwell fp8-block trtllm"),
        ("B200", "int4", "hopper int4 marlin"),
        ("RTX PRO 6000", "fp8", "blackwell-gb202 fp8 by-tokens"),
    ],
)
def test_weights_find_the_kernel_that_serves_them(gpu: str, weights: str, kernel: str) -> None:
    """What a GPU does not multiply as it is stored is unpacked by Marlin's kernel."""
    part = catalog.gpu(gpu)
    found = kernel_for(part, part.constants.experts, weights)
    assert found is not None
    assert found.name == kernel


def test_gpus_without_a_measured_kernel_multiply_experts_as_others() -> None:
    """No kernel, no table: as many multiplications as there are experts."""
    part = catalog.gpu("MI300X")
    assert kernel_for(part, part.constants.experts, "bf16") is None
    model = ModelConfig(spec=catalog.model("qwen3-30b-a3b"), max_model_len=4096)
    timer = KernelTimer(part)
    for operator in layer_operators(model, model.spec.layers[0].layer, 1, 64):
        assert operator.kind == "attention" or timer.operator_s(operator) > 0.0


def test_the_calls_latency_is_shared_by_the_kernels_before_the_multiplications() -> None:
    """What a benchmark times as one call is several kernels to issue."""
    part = catalog.gpu("H100")
    model = ModelConfig(spec=catalog.model("qwen3-30b-a3b"), max_model_len=4096)
    times = {
        operator.name: KernelTimer(part).operator_s(operator)
        for operator in layer_operators(model, model.spec.layers[0].layer, 1, 64)
        if operator.kind != "attention"
    }
    kernel = kernel_for(part, part.constants.experts, "bf16")
    assert kernel is not None
    assert sum(times[name] for name in ALIGN_KERNELS) == pytest.approx(kernel.fixed_s)
    assert times["experts_sum"] == pytest.approx(kernel.number_s * 64 * 8 * 2048)


@pytest.mark.parametrize(("tokens", "low", "high"), [(16, 0.87, 0.94), (32, 0.87, 0.94)])
def test_an_uneven_router_visits_fewer_experts(tokens: int, low: float, high: float) -> None:
    """Real gates visit 0.87 to 0.94 of what an even router would; one token visits all of its."""
    even, real = (experts_touched(128, 8, tokens, spread) for spread in (0.0, EXPERT_SPREAD))
    assert low < real / even < high
    assert experts_touched(128, 8, 1, EXPERT_SPREAD) == pytest.approx(8.0)
    assert experts_touched(128, 8, 1_000_000, EXPERT_SPREAD) == pytest.approx(128.0, rel=0.01)
    assert experts_touched(128, 8, tokens, 1e-4) == pytest.approx(even, rel=1e-4)


def test_visits_of_gamma_popular_experts_are_those_that_are_drawn() -> None:
    """The closed form against draws: popularity gamma, visits of the tokens Poisson."""
    rng = np.random.default_rng(2)
    spread, tokens = 0.63, 24
    popularity = rng.gamma(1.0 / spread**2, spread**2, 200_000)
    visits = -(tokens - 1) * np.log(1.0 - 8 / 128)
    missed = (1.0 - 8 / 128) * (rng.poisson(visits * popularity) == 0).mean()
    assert experts_touched(128, 8, tokens, spread) == pytest.approx(128 * (1 - missed), rel=0.01)


@pytest.mark.parametrize(
    ("name", "tp_size", "added"),
    [
        ("llama-3.1-8b", 2, []),
        ("qwen3-14b", 2, ["qk_norm"]),
        ("minimax-m2", 1, ["qk_norm"]),
        ("minimax-m2", 2, ["qk_square", "qk_all_reduce", "qk_norm"]),
    ],
)
def test_norms_of_queries_and_keys_are_kernels(name: str, tp_size: int, added: list[str]) -> None:
    """A norm over all heads needs the squares of all ranks: two numbers of 32 bits a token."""
    model = ModelConfig(spec=catalog.model(name), max_model_len=4096)
    operators = layer_operators(model, model.spec.layers[0].layer, tp_size, 10)
    found = [operator for operator in operators if operator.name.startswith("qk_")]
    assert [operator.name for operator in found] == added
    for operator in found:
        if operator.kind == "all_reduce":
            assert operator.bytes == 10 * 2 * 4
