"""Calibration: formats and their errors, fits that find known constants, errors as stated."""

from __future__ import annotations

import json
import os
import tomllib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import ArrayLike

from helpers.refusals import refused
from simcluster import catalog
from simcluster.catalog import Catalog
from simcluster.catalog.kernel_file import NEEDS
from simcluster.catalog.layers import WEIGHT_DTYPES
from simcluster.catalog.specs import AllReduceTerms, ExpertKernel, GPUSpec, KernelConstants
from simcluster.cli import main
from simcluster.config import ModelConfig
from simcluster.errors import DataError, InvariantError
from simcluster.fidelity.calibrate import fit, fit_link, held_out, joined, kernel_s, samples
from simcluster.fidelity.calibrate.derive import SETS, fitted_sets
from simcluster.fidelity.calibrate.fit import decodes_from_memory, gemms_from_memory
from simcluster.fidelity.calibrate.law import layer_sums
from simcluster.fidelity.calibrate.readers import KERNELS, plain_csv, vidur
from simcluster.fidelity.calibrate.readers.samples import Samples
from simcluster.fidelity.calibrate.report import experts_row, kernels_row, rounded
from simcluster.fidelity.validate.base import Check, check
from simcluster.fidelity.validate.kernel_checks import checks
from simcluster.roofline import RooflineStepTime, StepShape
from simcluster.roofline.kernels import KernelTimer, smooth_max, wave_share
from simcluster.roofline.operators import attention_work, layer_operators
from simcluster.testing import specs
from simcluster.testing.examples import examples
from simcluster.units import TICK_S

DATA = Path(
    os.environ.get(
        "SIMCLUSTER_DATA", str(Path(__file__).resolve().parents[2] / ".." / "shared" / "data")
    )
)
HEADER = "operator,m,n,k,batch,context,num_heads,num_kv_heads,head_dim,num_experts,top_k,dtype,tp"


def measured(name: str) -> Path:
    """Folder of a measured set; skips the test where the set is not here."""
    if not (DATA / name).is_dir():
        pytest.skip(f"measured set {name} is not here (SIMCLUSTER_DATA)")
    return DATA / name


EXPERT_KERNELS = (
    ("bf16", "by-tokens"),
    ("fp8", "by-experts"),
    ("fp8-block", "block-by-tokens"),
    ("int4", "marlin"),
)


def finer() -> KernelConstants:
    """Constants with every term of the law in use."""
    return replace(
        specs.h100().constants,
        mfu_gemm=0.8,
        mbu_gemm=0.9,
        smooth_p=2.0,
        fixed_s=4e-6,
        mfu_gemm_8bit=0.7,
        quantise_s=5e-6,
        mbu_quantise=0.2,
        gemm_waves=0.4,
        gemm_tile_loss=0.3,
        mfu_gemm_block=0.6,
        mbu_gemm_block=0.7,
        fixed_block_s=12e-6,
        experts=tuple(
            ExpertKernel(
                name=weights,
                weights=weights,
                tiles=tiles,
                mfu=0.3,
                small_tiles=0.6,
                large_tiles=1.4,
                mbu=0.8,
                smooth_p=2.5,
                tile_s=0.2e-6,
                fixed_s=20e-6,
                number_s=1.2e-12,
                unaligned=1.7,
                tuned=((8, 14336),),
                tuned_gain=2.2,
                source="test",
            )
            for weights, tiles in EXPERT_KERNELS
        ),
        elementwise_fixed_s=2.5e-6,
        norm_fixed_s=2e-6,
        attention_fixed_s=11e-6,
        mbu_norm=0.9,
        mbu_rope=0.5,
        mbu_activation=0.6,
        mbu_add=0.8,
        mbu_embedding=0.7,
        mbu_prefill=0.3,
        prefill_p=1.2,
        prefill_waves=0.6,
        attention_causal=0.8,
        decode_waves=0.5,
        attention_context_s=1e-9,
        attention_split_s=3e-6,
        decode_overlap=0.6,
        mbu_attention_8bit=0.5,
        row_chain_s=40e-9,
        row_s=0.1e-6,
        cached_norm=1.4,
        cached_rope=1.2,
        cached_activation=1.1,
        cached_add=1.3,
        cached_embedding=1.5,
        mbu_gemm_few=0.9,
        mixed_tile=64.0,
        mixed_mfu=0.7,
        mixed_block_s=6e-6,
    )


def gpu(constants: KernelConstants) -> GPUSpec:
    """An H100 with these constants."""
    return replace(specs.h100(), constants=constants)


# --- the law for arrays is the law of the simulation -----------------------------------------


@given(
    st.integers(1, 9000),
    st.integers(64, 30000),
    st.integers(64, 30000),
    st.sampled_from([0.5, 1.0, 2.0]),
)
@examples(100)
def test_arrays_and_steps_agree_on_multiplications(m: int, n: int, k: int, size: float) -> None:
    """The fitted law is the simulated one, with the table's kernel that brings inputs to 8 bits."""
    part = gpu(finer())
    timer = KernelTimer(part)
    expected = timer.gemm_s(2.0 * m * n * k, size * n * k + 2.0 * m * (n + k), size, m, n)
    if size == 1.0:
        expected += 5e-6 + 3.0 * m * k / (0.2 * part.memory_bandwidth)
    rows = samples("gemm", [1.0], m=m, n=n, k=k, num_bytes=size)
    assert kernel_s(rows, part, part.constants)[0] == pytest.approx(expected, rel=1e-12)


@given(
    st.integers(1, 4096),
    st.sampled_from([1, 2, 4, 8]),
    st.sampled_from(["mixtral-8x7b", "qwen3-30b-a3b"]),
    st.sampled_from(["bf16", "fp8", "fp8-block", "int4"]),
)
@examples(80)
def test_arrays_and_steps_agree_on_layers_with_experts(
    m: int, tp_size: int, name: str, weights: str
) -> None:
    """Sorting, both multiplications, activation and sum, of each kind of kernel."""
    part = gpu(finer())
    timer = KernelTimer(part)
    model = ModelConfig(
        spec=catalog.model(name), max_model_len=4096, weight_dtype=weights, expert_spread=0.0
    )
    spec, moe = model.spec, {}
    for operator in layer_operators(model, spec.layers[0].layer, tp_size, m):
        moe[operator.name] = timer.operator_s(operator)
    assert spec.experts is not None
    width = spec.experts.ffn_dim / tp_size
    whole = samples(
        "moe",
        [1.0],
        m=m,
        n=width,
        k=spec.hidden_size,
        num_experts=spec.experts.num_experts,
        top_k=spec.experts.num_active,
        num_bytes=WEIGHT_DTYPES[weights].num_bytes,
        kernel=f"{weights} {dict(EXPERT_KERNELS)[weights]}",
    )
    names = ("count", "align", "quantise", "up_proj", "activation", "down_proj", "sum")
    expected = sum(moe[f"experts_{name}"] for name in names)
    assert kernel_s(whole, part, part.constants)[0] == pytest.approx(expected, rel=1e-9)
    norm = samples("norm", [1.0], m=m, n=spec.hidden_size)
    near = kernel_s(norm, part, part.constants)[0]
    assert near == pytest.approx(moe["input_norm"], rel=1e-3 + 0.3 / m)  # the weights are left out


@given(st.integers(1, 300), st.integers(1, 9000), st.integers(0, 3000))
@examples(100)
def test_arrays_and_steps_agree_on_attention(batch: int, context: int, new: int) -> None:
    """Decode, one chunk, and both in one kernel, out of the record of a step."""
    part = gpu(finer())
    model = ModelConfig(spec=specs.codellama_34b(), max_model_len=16384)
    step = RooflineStepTime(model, part, specs.nvlink3(), specs.ideal_engine(), 2)
    chunks = ((new, 0),) if new else ()
    shape = StepShape(batch, batch * (context + 1), chunks, batch, 0)
    runs = step.kernels(shape).runs
    run = next(run for run in runs if "attention" in run.names)
    simulated = run.run_s[run.names.index("attention")]
    heads = {"num_heads": 32, "num_kv_heads": 4, "head_dim": 128}
    rows = samples(
        "attention_mixed" if new else "attention_decode",
        [1.0],
        m=max(new, 1),
        batch=batch,
        context=context,
        **heads,
    )
    assert simulated == pytest.approx(
        kernel_s(rows, part, part.constants)[0], rel=1e-12, abs=TICK_S
    )
    if new:
        alone = step.kernels(StepShape(0, 0, chunks, 1, 0)).runs
        run = next(run for run in alone if "attention" in run.names)
        rows = samples("attention_prefill", [1.0], m=new, batch=1, context=0, **heads)
        expected = kernel_s(rows, part, part.constants)[0]
        assert run.run_s[run.names.index("attention")] == pytest.approx(expected, abs=TICK_S)


def test_finer_terms_are_left_out_by_default() -> None:
    """Results with plain constants do not know of them."""
    plain = gpu(specs.h100().constants)
    timer = KernelTimer(plain)
    assert timer.gemm_s(1e12, 1e8, 2.0, 300, 5000) == timer.gemm_s(1e12, 1e8, 2.0)
    assert timer.prefill_flops(1e9, 2e9, 100.0) == 1e9
    work = attention_work(
        ModelConfig(spec=specs.codellama_34b(), max_model_len=4096),
        specs.codellama_34b().attentions[0],
        1,
    )
    alone = timer.decode_terms(work, 7)
    assert (alone.root, alone.rate, alone.split) == (0.0, 0.0, 0.0)
    assert KernelTimer(gpu(replace(plain.constants, mixed_tile=0.0))).mixed_terms(work, 7) is None
    assert timer.elementwise_s(1e7, "norm", 100.0) == timer.elementwise_s(1e7, "add", 100.0)


def decode_s(
    constants: KernelConstants, batch: int, context: int, kv_dtype: str | None = None
) -> float:
    """Decode attention of one layer of CodeLlama-34B on one GPU (s), read off a step."""
    model = ModelConfig(spec=specs.codellama_34b(), max_model_len=16384, kv_dtype=kv_dtype)
    step = RooflineStepTime(model, gpu(constants), specs.nvlink3(), specs.ideal_engine(), 1)
    runs = step.kernels(StepShape(batch, batch * context, (), batch, 0)).runs
    run = next(run for run in runs if "attention" in run.names)
    return run.run_s[run.names.index("attention")]


def test_putting_parts_together_costs_where_contexts_are_split() -> None:
    """Fewer than 1.6 blocks per SM and more than one tile of context: 26 sequences of 8 heads."""
    with_split, without = finer(), replace(finer(), attention_split_s=0.0)
    edge = int(1.6 * specs.h100().num_sms / 8)
    for batch, context, cost_s in (
        (edge, 129, 3e-6),
        (edge, 128, 0.0),
        (edge + 1, 4000, 0.0),
        (1, 4000, 3e-6),
    ):
        extra = decode_s(with_split, batch, context) - decode_s(without, batch, context)
        assert extra == pytest.approx(cost_s, abs=2 * TICK_S)


@given(st.integers(1, 300), st.integers(1, 9000), st.floats(0.0, 1.0))
@examples(50)
def test_blocks_that_begin_while_others_read_save_time(
    batch: int, context: int, overlap: float
) -> None:
    """Between the sum of the two times and the root of their squares; the longer one is the least.

    With nothing else in the law the two times are those of a context of next to nothing and of no
    blocks.
    """
    plain = replace(finer(), attention_split_s=0.0, attention_context_s=0.0, attention_fixed_s=0.0)
    found = decode_s(replace(plain, decode_overlap=overlap), batch, context)
    added = decode_s(replace(plain, decode_overlap=0.0), batch, context)
    rooted = decode_s(replace(plain, decode_overlap=1.0), batch, context)
    assert rooted - TICK_S <= found <= added + TICK_S
    assert found == pytest.approx((1 - overlap) * added + overlap * rooted, abs=2 * TICK_S)
    assert rooted >= added / 2**0.5 - TICK_S


@given(st.integers(1, 200), st.integers(1, 300), st.integers(1, 200), st.floats(0.0, 1.0))
@examples(60)
def test_finer_decode_terms_give_the_same_bits_however_they_are_asked(
    batch: int, context: int, num_steps: int, overlap: float
) -> None:
    """One step, a vector of steps, their ends with and without NumPy, across a split's edge."""
    part = gpu(replace(finer(), decode_overlap=overlap))
    model = ModelConfig(spec=specs.codellama_34b(), max_model_len=16384)
    step = RooflineStepTime(model, part, specs.nvlink3(), specs.ideal_engine(), 2)
    tokens = [batch * (context + i) for i in range(num_steps)]
    each = np.array([step.step_s(StepShape(batch, n, (), batch, n)) for n in tokens])
    asked = (batch, tokens[0], num_steps)
    assert step.decode_steps_s(*asked).tolist() == each.tolist()
    assert step.decode_ends_s(3.0, *asked) == (3.0 + np.cumsum(each)).tolist()
    short = (batch, tokens[0], min(num_steps, 3))
    ends = (3.0 + np.cumsum(each[:3])).tolist()
    assert step.decode_ends_s(3.0, *short) == ends


def test_an_eight_bit_cache_has_a_share_of_its_own() -> None:
    """Half the bytes at half the share take as long."""
    truth = replace(
        finer(), attention_block_s=0.0, decode_overlap=0.0, mfu_attention=1.0, smooth_p=4.0
    )
    half = replace(truth, mbu_attention_8bit=0.5 * truth.mbu_attention)
    same = replace(truth, mbu_attention_8bit=None)
    wide = decode_s(truth, 64, 8000)
    assert decode_s(half, 64, 8000, kv_dtype="fp8") == pytest.approx(wide, rel=1e-6)
    assert decode_s(same, 64, 8000, kv_dtype="fp8") == pytest.approx(0.5 * wide, rel=0.1)


def test_rows_and_the_second_level_cache_count_in_elementwise_kernels() -> None:
    """One long row is a chain; many rows fill the SMs; what the cache holds comes faster."""
    part = replace(gpu(finer()), l2_bytes=50e6)
    timer = KernelTimer(part)
    bandwidth = part.memory_bandwidth
    one = timer.elementwise_s(1e5, "norm", 1.0)
    assert one == pytest.approx(2e-6 + 40e-9 * 100, rel=0.01)
    assert timer.elementwise_s(1e5, "add", 1.0) == pytest.approx(2.5e-6, rel=0.01)
    large = 100 * part.l2_bytes
    rows = 1e6 * part.num_sms
    in_cache = part.l2_bytes * (1 / 1.4 - 1) / (0.9 * bandwidth)
    expected = large / (0.9 * bandwidth) + in_cache + 0.1e-6 * 1e6
    assert timer.elementwise_s(large, "norm", rows) == pytest.approx(expected, rel=1e-3)


@given(st.floats(0.01, 50))
@examples(100)
def test_part_waves_never_pay(waves: float) -> None:
    """A stretch of at least 1, at most the time of a part wave alone; 1 in whole waves of two."""
    assert 1.0 <= wave_share(waves) <= 2.0
    assert wave_share(2.0 * max(1, round(waves))) == 1.0


def test_whole_tiles_in_whole_waves_cost_what_they_compute() -> None:
    """With gemm_waves = 1: one result more than a full wave of tiles costs a second wave."""
    part = gpu(replace(finer(), gemm_waves=1.0, gemm_tile_loss=1e6, smooth_p=4.0, fixed_s=0.0))
    rows = 128.0 * part.num_sms
    peak = 0.8 * part.flops_16bit
    timer = KernelTimer(part)
    full = timer.gemm_s(2.0 * rows * 256 * 8192, 1.0, 2.0, rows, 256)
    more = timer.gemm_s(2.0 * (rows + 1) * 256 * 8192, 1.0, 2.0, rows + 1, 256)
    assert full == pytest.approx(2.0 * rows * 256 * 8192 / peak)
    assert more == pytest.approx(2 * full)


def test_older_software_has_constants_of_its_own() -> None:
    """The engine's generation chooses; what is not known falls back to the current one."""
    part = catalog.gpu("A100")
    assert part.constants_of("") is part.constants
    assert part.constants_of("1999") is part.constants
    assert part.constants_of("2024").mfu_gemm < part.constants.mfu_gemm
    model = ModelConfig(spec=specs.codellama_34b(), max_model_len=4096)
    engine = catalog.engine("ideal")
    new, old = (
        RooflineStepTime(model, part, specs.nvlink3(), replace(engine, kernel_generation=g), 1)
        for g in ("", "2024")
    )
    assert new.prefill_s(2048) < old.prefill_s(2048)


def test_eight_bit_inputs_cost_a_kernel_only_where_the_engine_has_one() -> None:
    """Compiled engines bring them to 8 bits in the kernel before."""
    part = gpu(finer())
    model = ModelConfig(spec=specs.codellama_34b(), max_model_len=4096, weight_dtype="fp8")
    engine = specs.ideal_engine()
    fused, apart = (
        RooflineStepTime(model, part, specs.nvlink3(), replace(engine, quantises=how), 1)
        for how in ("fused", "apart")
    )
    extra = apart.prefill_s(1) - fused.prefill_s(1)
    assert extra == pytest.approx(48 * 4 * 2.5e-6, rel=0.05)
    # Of 8192 tokens three bytes a number, as an activation streams; of the table's share, 0.2,
    # nothing is left. Inputs: hidden states twice, attention's result, the MLP's.
    numbers = 8192 * (3 * 8192 + 22016)
    streamed = 48 * 3.0 * numbers / (0.6 * part.memory_bandwidth)
    extra = apart.prefill_s(8192) - fused.prefill_s(8192)
    assert extra == pytest.approx(streamed, rel=0.03)


# --- fits -------------------------------------------------------------------------------------


def grid(constants: KernelConstants) -> Samples:
    """Kernels that take exactly what the law says."""
    part = gpu(constants)
    m, n, k = (
        axis.ravel()
        for axis in np.meshgrid(
            [1, 16, 128, 300, 512, 1000, 4096], [1024, 4096, 14336], [1024, 4096, 8192]
        )
    )
    batch, context, heads = (
        axis.ravel()
        for axis in np.meshgrid([1, 4, 16, 64, 256], [64, 512, 2048, 8192], [8, 16, 32])
    )
    attention: dict[str, ArrayLike] = {
        "num_heads": heads,
        "num_kv_heads": heads / 4,
        "head_dim": 128,
    }
    group = heads.astype(int).astype(str)
    ones = np.ones(len(batch))
    parts = [
        samples("gemm", np.ones(len(m)), m=m, n=n, k=k, group=n.astype(str)),
        samples("attention_decode", ones, batch=batch, context=context, group=group, **attention),
        samples(
            "attention_prefill",
            ones,
            m=context,
            batch=batch % 7 + 1,
            context=0,
            group=group,
            **attention,
        ),
    ]
    for name in ("norm", "rope", "activation", "add"):
        parts.append(samples(name, np.ones(len(m)), m=m, n=n, group=n.astype(str)))
    rows = joined(parts)
    return replace(rows, time_s=kernel_s(rows, part, constants))


def test_a_fit_finds_the_constants_that_made_the_times() -> None:
    """Exact times: the law is met within a percent, the main constants within a few."""
    truth = replace(finer(), attention_causal=1.0)
    rows = grid(truth)
    found = fit(rows, gpu(truth), specs.h100().constants)
    error = np.abs(kernel_s(rows, gpu(truth), found) / rows.time_s - 1.0)
    assert error.mean() < 0.01
    for name in ("mfu_gemm", "mbu_gemm", "mfu_attention", "mbu_attention", "mbu_norm"):
        assert getattr(found, name) == pytest.approx(getattr(truth, name), rel=0.05)
    assert found.fixed_s == pytest.approx(truth.fixed_s, rel=0.1)
    assert found.attention_fixed_s == pytest.approx(truth.attention_fixed_s, rel=0.1)
    assert found.mixed_mfu == specs.h100().constants.mixed_mfu  # not measured, so not touched


def test_held_out_groups_are_predicted_by_a_fit_without_them() -> None:
    """Exact times leave little error; every row comes back once."""
    truth = replace(finer(), attention_causal=1.0)
    rows = grid(truth)
    test, times = held_out(rows, gpu(truth), specs.h100().constants)
    assert len(test) == len(rows)
    assert np.abs(times / test.time_s - 1.0).mean() < 0.05


def test_an_all_reduce_is_fitted_by_world_size() -> None:
    """Latency and share that made the times."""
    link = specs.nvlink3()
    size = 2.0 ** np.arange(12, 27)
    parts = []
    for tp, latency_s, share in ((2, 5e-6, 0.6), (8, 9e-6, 0.5)):
        time = latency_s + 2 * (tp - 1) / tp * size / (link.bandwidth * share)
        parts.append(samples("all_reduce", time, m=1, n=size / 2, tp=tp))
    found = fit_link(joined(parts), link)
    assert [row[0] for row in found] == [2, 8]
    assert found[0][1:] == pytest.approx((5e-6, 0.6), rel=1e-3)
    assert found[1][1:] == pytest.approx((9e-6, 0.5), rel=1e-3)


def test_world_sizes_between_measured_ones_take_the_smaller() -> None:
    """4 GPUs between 2 and 8 measured ones; 16 beyond; none below 2."""
    from simcluster.roofline.collectives import library_terms

    link = replace(
        specs.nvlink3(),
        allreduce_terms=(
            AllReduceTerms(tp_size=2, latency_s=1e-6, efficiency=0.5),
            AllReduceTerms(tp_size=8, latency_s=2e-6, efficiency=0.6),
        ),
    )
    known = [library_terms(link, tp)[0].latency_s for tp in (2, 4, 8, 16)]
    assert known == [1e-6, 1e-6, 2e-6, 2e-6]
    (plain,) = library_terms(specs.nvlink3(), 4)
    assert (plain.latency_s, plain.efficiency) == (10e-6, 0.7)


def test_what_a_benchmark_finds_in_the_cache_is_left_out() -> None:
    """96 MB beside GDDR keep weights of 8 MB and a KV cache of the same size; HBM parts do not."""
    small = samples("gemm", [1e-6, 1e-6], m=[1, 4096], n=2048, k=2048)
    assert gemms_from_memory(small, catalog.gpu("L40S")).tolist() == [False, True]
    assert gemms_from_memory(small, catalog.gpu("H100")).tolist() == [True, True]
    decode = samples(
        "attention_decode",
        [1e-6] * 3,
        batch=[1, 16, 512],
        context=1000,
        num_heads=32,
        num_kv_heads=8,
        head_dim=128,
    )
    assert decodes_from_memory(decode, catalog.gpu("L40S")).tolist() == [True, False, True]


# --- the plain CSV ----------------------------------------------------------------------------


def written(tmp_path: Path, *lines: str, header: str = HEADER + ",mode,time_us") -> Path:
    """Write a CSV file."""
    path = tmp_path / "mine.csv"
    path.write_text("\n".join([header, *lines]) + "\n", encoding="utf-8")
    return path


def test_the_plain_csv_is_read_as_documented(tmp_path: Path) -> None:
    """Units, defaults, comments, repeats."""
    rows = plain_csv.read(
        written(
            tmp_path,
            "# a remark",
            "gemm,256,14336,4096,,,,,,,,bf16,,,61.4",
            "gemm,256,14336,4096,,,,,,,,bf16,,graph,62.4",
            "attention_decode,,,,64,0,32,8,128,,,fp8,,graph,182.0",
            "issue,1,,,,,,,,,,bf16,,eager,5.1",
        )
    )
    assert rows.operators == ["gemm", "attention_decode", "issue"]
    assert rows.of("gemm").time_s.tolist() == pytest.approx([61.9e-6])
    decode = rows.of("attention_decode")
    assert decode.bytes.tolist() == [1.0]
    assert decode["m"].tolist() == [1.0]
    assert decode["context"].tolist() == [0.0]
    assert np.isnan(decode["n"]).all()
    assert rows.of("issue").eager.tolist() == [True]


def test_other_units_and_other_gpus(tmp_path: Path) -> None:
    """Milliseconds are understood; rows of another GPU are left out."""
    header = "operator,m,n,dtype,time_ms,gpu"
    path = written(tmp_path, "norm,1,4096,bf16,0.002,L4", "norm,1,4096,bf16,0.1,T4", header=header)
    assert plain_csv.read(path, "L4").time_s.tolist() == [0.002e-3]
    with pytest.raises(DataError, match="no rows of H100"):
        plain_csv.read(path, "H100")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("gemm,256,,4096,,,,,,,,bf16,,,61.4", "line 2: gemm needs n, which is empty"),
        ("gemm,x,14336,4096,,,,,,,,bf16,,,61.4", "line 2: m is 'x', not a number"),
        ("gemm,0,14336,4096,,,,,,,,bf16,,,61.4", "line 2: m is 0, must be at least 1"),
        ("gemm,256,14336,4096,,,,,,,,bf16,,,0", "time_us is 0, must be above 0"),
        ("gemm,256,14336,4096,,,,,,,,bf16,,,-3", "time_us is -3, must be above 0"),
        ("gemm,256,14336,4096,,,,,,,,bf16,,,nan", "time_us is 'nan', not a number"),
        ("gemm,256,14336,4096,,,,,,,,fp12,,,1", "unknown dtype 'fp12'"),
        ("gem,256,14336,4096,,,,,,,,bf16,,,1", "unknown operator 'gem'. Did you mean"),
        ("gemm,256,14336,4096,,,,,,,,bf16,,cold,1", "unknown mode 'cold'"),
        ("all_reduce,1,4096,,,,,,,,,bf16,1,,1", "tp is 1, must be at least 2"),
        ("gemm,256,14336", "3 values under 15 columns"),
    ],
)
def test_a_bad_row_is_one_line(tmp_path: Path, line: str, message: str) -> None:
    """File, line, what is wrong."""
    with refused(message, error=DataError):
        plain_csv.read(written(tmp_path, line))


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("operator,m,n,k,dtype", "missing column 'time_us'"),
        ("m,n,k,time_us", "missing column 'operator', 'dtype'"),
        ("operator,dtype,time_min", "unknown unit of 'time_min'"),
        ("operator,dtype,time_us,time_ms", "two time columns"),
        ("operator,dtype,wide,time_us", "unknown column 'wide'"),
        ("operator,dtype,dtype,time_us", "stands there twice"),
    ],
)
def test_a_bad_header_is_one_line(tmp_path: Path, header: str, message: str) -> None:
    """Missing columns are named, misspelt ones noticed."""
    with pytest.raises(DataError, match=message):
        plain_csv.read(written(tmp_path, "x", header=header))


def test_a_column_that_only_one_operator_needs_is_named(tmp_path: Path) -> None:
    """All the others can do without it."""
    path = written(tmp_path, "gemm,1,2,bf16,3", header="operator,m,n,dtype,time_us")
    with pytest.raises(DataError, match="gemm needs the column 'k', which is missing"):
        plain_csv.read(path)


def test_repeats_that_disagree_are_refused(tmp_path: Path) -> None:
    """More than a factor of two is no repeat."""
    path = written(tmp_path, "norm,1,4096,,,,,,,,,bf16,,,2.0", "norm,1,4096,,,,,,,,,bf16,,,5.0")
    with pytest.raises(DataError, match=r"lines 2 and 3: the same call took 2 and 5 us"):
        plain_csv.read(path)


def test_every_operator_is_documented() -> None:
    """The table of docs/calibration.md has them all."""
    text = (Path(__file__).parents[2] / "docs" / "calibration.md").read_text("utf-8")
    assert not [name for name in NEEDS if f"`{name}`" not in text]


# --- the command ------------------------------------------------------------------------------


def as_csv(rows: Samples, path: Path) -> None:
    """Write samples in the plain format."""
    names = HEADER.split(",")
    lines = [HEADER + ",mode,time_us"]
    for i, operator in enumerate(rows.operator.tolist()):
        fields = {"operator": operator, "dtype": "bf16"}
        for name in NEEDS[operator]:
            fields[name] = f"{rows[name][i]:g}"
        values = [fields.get(name, "") for name in names]
        lines.append(",".join([*values, "graph", f"{rows.time_s[i] * 1e6:.6f}"]))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def test_the_command_writes_a_catalogue_file(tmp_path: Path) -> None:
    """From a CSV to constants that a scenario can use; numbers for programs too."""
    truth = replace(finer(), attention_causal=1.0)
    rows = grid(truth)
    size = 2.0 ** np.arange(12, 27)
    reduces = samples("all_reduce", 8e-6 + size / 1e11, m=1, n=size / 2, tp=4)
    as_csv(joined([rows, reduces]), tmp_path / "mine.csv")
    out = tmp_path / "mine.toml"
    arguments = ["calibrate", str(tmp_path / "mine.csv"), "--gpu", "H200", "-o", str(out), "--json"]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["gpu"] == "H200 SXM"
    assert {row["operator"] for row in report["errors"]} >= {"gemm", "norm", "attention_decode"}
    assert all(row["held_out"] is not None for row in report["errors"])
    assert any("data sheet" in note for note in report["notes"])  # H200 had no measured constants
    mine = Catalog().with_file(out)
    part = mine.gpu("H200")
    assert part.constants.accuracy == "measured"
    assert part.memory_bandwidth == 4800e9
    assert mine.link("nvlink4 (measured)").allreduce_terms[0].tp_size == 4
    text = CliRunner().invoke(main, arguments[:-1]).stdout
    assert "held out" in text


def test_too_few_all_reduces_do_not_keep_the_rest_from_being_fitted(tmp_path: Path) -> None:
    """They are said to be too few; alone they are refused."""
    size = 2.0 ** np.arange(12, 14)
    few = samples("all_reduce", 8e-6 + size / 1e11, m=1, n=size / 2, tp=4)
    kernels = grid(replace(finer(), attention_causal=1.0)).of("gemm")
    as_csv(joined([kernels, few]), tmp_path / "both.csv")
    as_csv(few, tmp_path / "few.csv")
    call = CliRunner().invoke
    both = call(main, ["calibrate", str(tmp_path / "both.csv"), "--gpu", "H100", "--json"])
    assert both.exit_code == 0, both.output
    report = json.loads(both.stdout)
    assert any("too few all-reduces" in note for note in report["notes"])
    assert "link" not in report["catalog"]
    alone = call(main, ["calibrate", str(tmp_path / "few.csv"), "--gpu", "H100"])
    assert alone.exit_code == 1
    assert alone.stderr == (
        "error: few.csv: too few all-reduces to fit (three of 4 kB to 64 MiB are needed)\n"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere.csv", "--gpu", "H100"], "cannot be read"),
        (["mine.csv", "--gpu", "H1000"], "no such gpu"),
        (["mine.csv", "--gpu", "H100"], "too few kernels"),
        (["mine.csv", "--gpu", "H100", "--set", "vidur_mlp"], "is one file"),
        ([".", "--gpu", "H100"], "no published set in it"),
        ([".", "--gpu", "H100", "--set", "vidur"], "no such set. Did you mean"),
        (["mine.csv", "--gpu", "H100", "--engine", "vlm"], "no such engine"),
    ],
)
def test_bad_calls_are_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    """Exit code 1 and what to do."""
    monkeypatch.chdir(tmp_path)
    written(tmp_path, "norm,1,4096,,,,,,,,,bf16,,,2.0")
    result = CliRunner().invoke(main, ["calibrate", *arguments])
    assert result.exit_code == 1
    assert message in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


# --- the catalogue's constants ----------------------------------------------------------------

REFERENCE = [
    # name, m, n, k, measured us, where: points of the published sets, medians
    ("A100-80GB SXM", 8192, 65536, 4096, 15287.54, "aiconfigurator, vLLM 0.14"),
    ("H100 SXM", 1, 8192, 8192, 45.6, "aiconfigurator, vLLM 0.14"),
    ("H100 SXM", 1024, 8192, 8192, 151.3, "aiconfigurator, vLLM 0.14"),
    ("L40S", 1024, 8192, 8192, 522.4, "aiconfigurator, vLLM 0.14"),
    ("B200 SXM", 1, 12288, 4096, 20.2, "aiconfigurator, vLLM 0.19"),
    ("B200 SXM", 8192, 12288, 4096, 455.1, "aiconfigurator, vLLM 0.19"),
    ("RTX 4090", 1, 28672, 4096, 247.3, "LLMServingSim, vLLM 0.19"),
    ("RTX 4090", 2048, 28672, 4096, 2896.8, "LLMServingSim, vLLM 0.19"),
    ("RTX PRO 6000 Blackwell Server", 128, 28672, 4096, 180.5, "LLMServingSim, vLLM 0.19"),
]


@pytest.mark.parametrize(("name", "m", "n", "k", "time_us", "source"), REFERENCE)
def test_reference_multiplications_are_met(
    name: str, m: int, n: int, k: int, time_us: float, source: str
) -> None:
    """A few points of each GPU, within 15 %, without the measured sets."""
    del source
    part = catalog.gpu(name)
    rows = samples("gemm", [time_us * 1e-6], m=m, n=n, k=k)
    assert kernel_s(rows, part, part.constants)[0] == pytest.approx(time_us * 1e-6, rel=0.15)


def test_reference_attention_is_met() -> None:
    """32 query and 8 KV heads: 64 sequences of 2048 tokens on A100, H100 and B200."""
    for name, time_us in (("A100", 356.4), ("H100", 185.1), ("B200", 81.2)):
        part = catalog.gpu(name)
        rows = samples(
            "attention_decode",
            [time_us * 1e-6],
            batch=64,
            context=2047,
            num_heads=32,
            num_kv_heads=8,
            head_dim=128,
        )
        found = kernel_s(rows, part, part.constants)[0]
        assert found == pytest.approx(time_us * 1e-6, rel=0.15), name


@pytest.mark.parametrize(
    "name",
    [
        "A800-80GB PCIe",
        "L20",
        "H20",
        "H200",
        "L4",
        "A10",
        "RTX 5090",
        "Ascend 910B3",
        "MI300X",
    ],
)
def test_derived_constants_say_how(name: str) -> None:
    """What was not measured names what it was taken from, and keeps below the measured ones."""
    constants = catalog.gpu(name).constants
    assert len(constants.source) > 50
    if name != "A800-80GB PCIe":  # the A100's die
        assert constants.accuracy == "data-sheet"


def test_the_catalogue_holds_the_fits() -> None:
    """The fitted sets of the file are what the script prints."""
    for name in ("vidur_mlp", "vidur_attention_a100", "aic_ops", "llmservingsim_ops"):
        measured(name)
    from importlib import resources

    text = resources.files("simcluster.catalog").joinpath("kernels.toml").read_text("utf-8")
    known = {row["name"]: row for row in tomllib.loads(text)["kernels"]}
    found = fitted_sets(DATA)
    for fitted in SETS:
        row = kernels_row(fitted.name, fitted.arch, found[fitted.name], fitted.holds_for)
        assert row.keys() == known[fitted.name].keys()
        for key, value in row.items():
            if isinstance(value, float):
                assert known[fitted.name][key] == pytest.approx(value, rel=0.02, abs=0.011), key
            else:
                assert known[fitted.name][key] == value
    text = resources.files("simcluster.catalog").joinpath("experts.toml").read_text("utf-8")
    entries = {entry["name"]: entry for entry in tomllib.loads(text)["experts"]}
    for constants in found.values():
        for kernel in constants.experts:
            for key, value in experts_row(kernel).items():
                if isinstance(value, float) and key in entries[kernel.name]:
                    assert entries[kernel.name][key] == pytest.approx(value, rel=0.05, abs=0.02)
                else:
                    assert entries[kernel.name].get(key, 1.0) == value


def test_the_checks_keep_their_limits() -> None:
    """What is stated of held-out data holds; it takes less than 20 s."""
    measured("aic_ops")
    found = checks(DATA)
    assert {one.data_set for one in found} <= {
        "vidur_mlp",
        "vidur_attention_a100",
        "aic_ops",
        "llmservingsim_ops",
    }
    limited = [one for one in found if one.must is not None]
    assert len(limited) >= 14
    missed = [(one.data_set, one.gpu, one.quantity) for one in limited if not one.met]
    # Stated in docs/accuracy.md: all kernels of Vidur's layers on A100, elementwise ones among
    # them, are 7.3 % off in the mean, where 7 % was asked.
    assert missed in ([], [("vidur_mlp", "A100", "each kernel")])
    assert all(one.mean < 0.08 for one in limited if one.quantity == "each kernel")


def test_the_catalogue_meets_models_that_it_was_not_fitted_to() -> None:
    """Constants as they stand in the file, on Llama-2-70B, Llama-3-8B and phi-2."""
    folder = measured("vidur_mlp")
    for name, generation, each, whole in (
        ("A100-80GB SXM", "2024", 0.07, 0.045),
        ("H100 SXM", "2024", 0.10, 0.06),
        ("A40", "", 0.08, 0.05),
    ):
        part = catalog.gpu(name)
        rows = vidur.read_mlp(folder, name)
        rows = rows.take(~np.isin(rows.group, vidur.TRAINED)).of("gemm")
        times = kernel_s(rows, part, part.constants_of(generation))
        assert np.abs(times / rows.time_s - 1).mean() < each
        sums, simulated = layer_sums(rows, times)
        assert np.abs(simulated / sums - 1).mean() < whole


@pytest.mark.parametrize("name", list(KERNELS))
def test_published_sets_are_read_whole(name: str) -> None:
    """Every row is one that the law has a time for; nothing about a GPU that is not in them."""
    folder = measured(name)
    for gpu_name in ("A100-80GB SXM", "RTX 4090", "MI300X"):
        part = catalog.gpu(gpu_name)
        rows = KERNELS[name](folder, gpu_name)
        assert (rows.time_s > 0).all()
        assert not np.isnan(kernel_s(rows, part, part.constants)).any()
        if gpu_name == "MI300X":
            assert not len(rows)


@pytest.mark.parametrize("name", ["splitwise_perf", "vidur_cpu_overhead", "vidur_network"])
def test_host_times_and_collectives_are_read(name: str, tmp_path: Path) -> None:
    """They become entries of an engine and a link."""
    measured(name)
    out = tmp_path / "found.toml"
    arguments = ["calibrate", str(DATA / name), "--gpu", "A100", "-o", str(out)]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    mine = Catalog().with_file(out)
    if name == "vidur_network":
        sizes = [t.tp_size for t in mine.link("nvlink3 (measured)").allreduce_terms]
        assert sizes == [2, 4, 8]
    else:
        assert mine.engine("vllm-0.19 (measured)").host_before_s >= 0.0


# --- small parts ------------------------------------------------------------------------------


def test_a_check_states_its_errors() -> None:
    """Two pairs, 10 % over and 10 % under."""
    one = check([1.0, 2.0], [1.1, 1.8], data_set="d", gpu="g", regime="r", quantity="q", must=0.2)
    assert one.n == 2
    assert one.mean == one.median == pytest.approx(0.1)
    assert one.bias == pytest.approx(2.9 / 3 - 1)
    assert one.met
    assert replace(one, must=0.05).met is False
    assert replace(one, must=None).met is None
    assert replace(one, must=0.05, limits="bias").met is True
    with pytest.raises(InvariantError):
        check([1.0], [1.0, 2.0], data_set="d", gpu="g", regime="r", quantity="q")
    none = check([], [], data_set="d", gpu="g", regime="r", quantity="q")
    assert isinstance(none, Check)
    assert np.isnan(none.mean)


@pytest.mark.parametrize(
    ("value", "expected"), [(0.12345, 0.123), (12345.0, 12300.0), (0.0, 0.0), (1e-9, 0.0)]
)
def test_constants_are_rounded_to_three_digits(value: float, expected: float) -> None:
    """What is next to nothing is nothing."""
    assert rounded(value) == expected


def test_layers_stay_apart_when_tables_are_joined() -> None:
    """Sums are over one layer of one table."""
    one = samples("norm", [1.0, 2.0], m=1, n=8, layer=[0, 1])
    both = joined([one, one])
    assert both.layer.tolist() == [0, 1, 2, 3]
    sums, _ = layer_sums(both, both.time_s)
    assert sums.tolist() == [1.0, 2.0, 1.0, 2.0]
    assert smooth_max(3.0, 4.0, 2.0) == 5.0
