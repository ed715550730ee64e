"""A user's file of kernel times: hand-interpolated values, the law's own table, what is refused."""

from __future__ import annotations

import dataclasses
import functools
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from simcluster import catalog
from simcluster.catalog import kernel_file
from simcluster.catalog.kernel_file import KernelCall, KernelRow, KernelTable
from simcluster.catalog.layers import WEIGHT_DTYPES
from simcluster.config import Environment
from simcluster.errors import ConfigError, DataError
from simcluster.fidelity.validate.harness import environment as machine
from simcluster.roofline import StageTime, StepShape, StepTime
from simcluster.roofline.kernels import KernelTimer
from simcluster.roofline.layout import Layout
from simcluster.roofline.measured import measured_kernels
from simcluster.roofline.measured.base import Gemm, gemm_of, operator_of
from simcluster.roofline.measured.curve import RatioCurve
from simcluster.roofline.measured.own import _ELEMENTWISE, _UNUSED, OwnKernels
from simcluster.roofline.of_environment import roofline_step_time
from simcluster.roofline.operators import Operator, head_operators, layer_operators
from simcluster.roofline.sources import StepTimeFactory, StepTimeSource, source_of
from simcluster.runs.compare import compare
from simcluster.scenario import file as scenario
from simcluster.scenario.kernel_use import lines as kernel_lines
from simcluster.show.text import heading
from simcluster.testing.contracts import StepTimeContract
from simcluster.testing.toy import ENGINES as TOY_ENGINES
from simcluster.testing.toy import STRICT, TOYS, toy_environment
from simcluster.units import TICK_S

HEADER = (
    "operator,m,n,k,batch,context,num_heads,num_kv_heads,head_dim,num_experts,top_k,dtype,time_us"
)


def written(folder: Path, *lines: str, header: str = HEADER) -> Path:
    """Return the path of a file of these lines."""
    path = folder / "mine.csv"
    path.write_text("\n".join([header, *lines]) + "\n", encoding="utf-8")
    return path


def gemm(m: int, n: int, k: int, time_us: float, dtype: str = "bf16") -> str:
    """Return a line of a multiplication."""
    return f"gemm,{m},{n},{k},,,,,,,,{dtype},{time_us!r}"


def llama(table: KernelTable | str = "law") -> Environment:
    """Return Llama-3.1-8B on H100, whose kernel times come from `table`."""
    where = machine("H100", "llama-3.1-8b", "vllm-0.19", num_gpus=8, max_model_len=8192)
    limits = dataclasses.replace(
        where.engine, max_num_seqs=64, chunk_size=512, large_gpu_max_num_seqs=None
    )
    limits = dataclasses.replace(limits, large_gpu_chunk_size=None)
    return dataclasses.replace(where, engine=limits, kernels=table)


def kernels_us(where: Environment, shape: StepShape, tp_size: int = 1) -> dict[str, float]:
    """Return the time of each kernel of a step by name (us), the last one of a name."""
    schedule = source_of(where)(where, tp_size).kernels(shape)
    return {
        name: 1e6 * time
        for run in schedule.runs
        for name, time in zip(run.names, run.run_s, strict=True)
    }


def decodes(num: int, context: int) -> StepShape:
    """Return a step of decodes of equal context."""
    return StepShape(num, num * context, (), num, num * context)


# A table of the law's own times ------------------------------------------------------------------


def by_law(where: Environment, tp_size: int = 1) -> list[str]:
    """Return a file that the law itself writes: powers of two of rows, batches and contexts."""
    timer = KernelTimer(where.cluster.gpu, where.engine.kernel_generation, quantises="fused")
    names = {(d.num_bytes, d.arithmetic): d.name for d in WEIGHT_DTYPES.values()}
    lines = []
    for m in [2**i for i in range(11)]:
        operators = [
            *layer_operators(where.model, where.model.spec.layers[0].layer, tp_size, m),
            *head_operators(where.model, tp_size, m, m),
        ]
        for op in operators:
            if op.kind == "gemm":
                inner = round(op.flops / (2 * op.rows * op.cols))
                dtype = names[op.weight_bytes, op.arithmetic]
                time_us = 1e6 * timer.operator_s(op)
                lines.append(gemm(m, round(op.cols), inner, time_us, dtype))
    model = source_of(where)(where, tp_size)
    heads, kv_heads = 32 // tp_size, 8 // tp_size
    for batch in [2**i for i in range(7)]:
        for context in [2**i for i in range(14)]:
            kernels = model.kernels(decodes(batch, context))
            time_us = next(
                1e6 * time
                for run in kernels.runs
                for name, time in zip(run.names, run.run_s, strict=True)
                if name == "attention"
            )
            lines.append(
                f"attention_decode,,,,{batch},{context - 1},{heads},{kv_heads},128,,,bf16,"
                f"{time_us!r}"
            )
    return list(dict.fromkeys(lines))


@pytest.mark.parametrize("tp_size", [1, 2])
def test_a_table_of_the_laws_own_times_gives_the_law_back(tmp_path: Path, tp_size: int) -> None:
    """At measured points within a tick of the grid, in between within one per mille."""
    law = llama()
    own = llama(kernel_file.read(written(tmp_path, *by_law(law, tp_size))))
    times = source_of(law)(law, tp_size), source_of(own)(own, tp_size)
    for batch, context in ((1, 1), (8, 1024), (64, 4096), (3, 700), (48, 5000), (64, 8000)):
        shape = decodes(batch, context)
        expected, got = (model.step_s(shape) for model in times)
        assert got == pytest.approx(expected, rel=1e-3)
        kernels = kernels_us(law, shape, tp_size), kernels_us(own, shape, tp_size)
        for name, by_law_us in kernels[0].items():
            assert kernels[1][name] == pytest.approx(by_law_us, rel=2e-3), (batch, context, name)
    chunk = StepShape(0, 0, ((500, 12),), 1, 0)
    assert times[1].step_s(chunk) == pytest.approx(times[0].step_s(chunk), rel=1e-3)


# Values by hand ----------------------------------------------------------------------------------


QKV = (6144, 4096)
"""Widths of Llama-3.1-8B's multiplication of query, key and value, whose rows the tests double."""


def gemms(*ratios: tuple[int, float]) -> list[str]:
    """Return rows of every multiplication of the model: numbers of rows, and times the law."""
    where = llama()
    timer = KernelTimer(where.cluster.gpu, where.engine.kernel_generation, quantises="fused")
    lines = []
    for m, ratio in ratios:
        layer = layer_operators(where.model, where.model.spec.layers[0].layer, 1, m)
        for op in [*layer, *head_operators(where.model, 1, m, m)]:
            if op.kind == "gemm":
                call = gemm_of(op)
                time_us = 1e6 * ratio * timer.operator_s(op)
                lines.append(gemm(m, int(call.n), int(call.k), time_us))
    return lines


@pytest.mark.parametrize(
    ("num", "ratio"),
    [
        (1, 1.0),  # below the table: its first ratio
        (4, 1.0),
        (8, 2**0.5),  # half way between 4 and 16 in logarithms, between ratios 1 and 2
        (16, 2.0),
        (32, 2 * 2**-0.5),  # half way to 64, where the ratio is 1 again
        (64, 1.0),
    ],
)
def test_between_two_numbers_of_rows_the_ratio_to_the_law_is_interpolated(
    tmp_path: Path, num: int, ratio: float
) -> None:
    """Linear in logarithms, by hand."""
    table = kernel_file.read(written(tmp_path, *gemms((4, 1.0), (16, 2.0), (64, 1.0), (512, 1.0))))
    law, own = (kernels_us(where, decodes(num, 100)) for where in (llama(), llama(table)))
    for name in ("qkv_proj", "o_proj", "up_proj", "down_proj", "lm_head"):
        assert own[name] == pytest.approx(ratio * law[name], abs=1e-3)
    assert own["attention"] == law["attention"]
    assert own["input_norm"] == law["input_norm"]


def test_a_measured_call_takes_what_was_measured(tmp_path: Path) -> None:
    """123.456 us, on the time grid."""
    lines = [line for line in gemms((1, 1.0), (512, 1.0)) if f",{QKV[0]},{QKV[1]}," not in line]
    lines += [gemm(1, *QKV, 10.0), gemm(32, *QKV, 123.456), gemm(512, *QKV, 200.0)]
    table = kernel_file.read(written(tmp_path, *lines))
    got = kernels_us(llama(table), decodes(32, 100))["qkv_proj"]
    assert abs(got - 123.456) < 1e6 * TICK_S


def test_decode_attention_is_bilinear_between_batches_and_contexts(tmp_path: Path) -> None:
    """Ratios of 1 and 3 at two contexts of two batches: by hand half way in both."""
    law = llama()
    rows = []
    for batch, context, ratio in ((4, 256, 1.0), (4, 1024, 3.0), (16, 256, 4.0), (16, 1024, 12.0)):
        time_us = ratio * kernels_us(law, decodes(batch, context))["attention"]
        rows.append(f"attention_decode,,,,{batch},{context - 1},32,8,128,,,bf16,{time_us!r}")
    own = llama(kernel_file.read(written(tmp_path, *rows)))
    for batch, context, ratio in (
        (4, 256, 1.0),
        (16, 1024, 12.0),
        (8, 256, 2.0),  # sqrt(1 x 4)
        (4, 640, 2.0),  # contexts: linear in tokens, half way between 256 and 1024
        (8, 640, (2.0 + 6.0) / 2),
        (16, 4096, 12.0),  # beyond the table the law goes on
    ):
        shape = decodes(batch, context)
        expected = ratio * kernels_us(law, shape)["attention"]
        assert kernels_us(own, shape)["attention"] == pytest.approx(expected, rel=1e-6)


def test_prefill_attention_of_several_chunks_is_weighed_by_their_pairs(tmp_path: Path) -> None:
    """A chunk of 64 tokens takes the law's time, one of 256 twice that."""
    law = llama()

    def attention(where: Environment, *chunks: tuple[int, int]) -> float:
        return kernels_us(where, StepShape(0, 0, chunks, 0, 0))["attention"]

    rows = []
    for batch in (1, 2):
        for new, ratio in ((64, 1.0), (256, 2.0)):
            time_us = ratio * attention(law, *[(new, 0)] * batch)
            rows.append(f"attention_prefill,{new},,,{batch},0,32,8,128,,,bf16,{time_us!r}")
    own = llama(kernel_file.read(written(tmp_path, *rows)))
    assert attention(own, (64, 0)) == pytest.approx(attention(law, (64, 0)), abs=1e-3)
    assert attention(own, (256, 0)) == pytest.approx(2 * attention(law, (256, 0)), rel=1e-6)
    both = ((64, 0), (256, 0))
    pairs = [new * (new + 1) for new, _ in both]
    weighed = (pairs[0] + 2 * pairs[1]) / sum(pairs)
    assert attention(own, *both) == pytest.approx(weighed * attention(law, *both), rel=1e-4)


def test_a_call_of_experts_is_shared_out_over_its_kernels(tmp_path: Path) -> None:
    """All seven kernels of the call take what was measured, together."""
    where = machine("H100", "mixtral-8x7b", "vllm-0.19", num_gpus=8, max_model_len=4096)
    limits = dataclasses.replace(
        where.engine,
        max_num_seqs=64,
        chunk_size=64,
        large_gpu_max_num_seqs=None,
        large_gpu_chunk_size=None,
    )
    where = dataclasses.replace(where, engine=limits)
    rows = [f"moe,{m},7168,4096,,,,,,8,2,bf16,{time!r}" for m, time in ((1, 90.0), (64, 777.0))]
    own = dataclasses.replace(where, kernels=kernel_file.read(written(tmp_path, *rows)))
    got = kernels_us(own, decodes(64, 100), tp_size=2)
    shares = [time_us for name, time_us in got.items() if name.startswith("experts_")]
    assert len(shares) == 7
    assert sum(shares) == pytest.approx(777.0, abs=7e6 * TICK_S)
    law = kernels_us(where, decodes(64, 100), tp_size=2)
    assert got["router"] == law["router"]


def test_shapes_that_were_not_measured_are_between_the_nearest(tmp_path: Path) -> None:
    """Two widths at the same distance: the geometric mean of their ratios, by hand."""
    where = llama()
    low, high = (int(QKV[0] / 2), QKV[1]), (QKV[0] * 2, QKV[1])
    timer = KernelTimer(where.cluster.gpu, where.engine.kernel_generation, quantises="fused")

    def law_us(m: int, n: int, k: int) -> float:
        moved = 2.0 * n * k + 2.0 * m * (n + k)
        op = Operator("x", "gemm", 2.0 * m * n * k, moved, 0.0, 2.0, rows=m, cols=n, groups=1.0)
        return 1e6 * timer.operator_s(op)

    rows = [gemm(m, *low, 1.5 * law_us(m, *low)) for m in (1, 512)]
    rows += [gemm(m, *high, 6.0 * law_us(m, *high)) for m in (1, 512)]
    table = kernel_file.read(written(tmp_path, *rows))
    own = _unchecked(table, where)
    found = own.gemm_s(Gemm("bf16", 16.0, float(QKV[0]), float(QKV[1])), 1.0)
    assert found == pytest.approx(3.0, rel=1e-9)


def test_shapes_that_were_measured_at_too_few_rows_stand_for_no_other(tmp_path: Path) -> None:
    """The nearest one was measured to 64 rows, as LM heads are: steps of 512 take the other."""
    where = llama()
    timer = KernelTimer(where.cluster.gpu, where.engine.kernel_generation, quantises="fused")

    def row(m: int, n: int, k: int, ratio: float) -> str:
        call = Gemm("bf16", float(m), float(n), float(k))
        return gemm(m, n, k, 1e6 * ratio * timer.operator_s(operator_of(call)))

    rows = [row(m, 5000, 4096, 9.0) for m in (1, 64)]
    rows += [row(m, 4096, 4096, 2.0) for m in (1, 512)]
    own = measured_kernels(llama(kernel_file.read(written(tmp_path, *rows))), 1)
    assert own is not None
    for m in (1.0, 64.0, 512.0):
        assert own.gemm_s(Gemm("bf16", m, 6144.0, 4096.0), 1.0) == pytest.approx(2.0, rel=1e-9)
    assert own.gemm_s(Gemm("bf16", 8.0, 28672.0, 4096.0), 1.0) is None
    lines = own.coverage().lines
    assert lines[0].startswith(
        "mine.csv: measured are GEMM (rows: 4 of bf16; by the law: up_proj, lm_head); "
    )
    assert "qkv_proj (n 6144, k 4096, bf16), 1.5 times off" in lines[-1]


def test_rows_of_the_lm_head_need_to_reach_the_sequences_alone(tmp_path: Path) -> None:
    """64 sequences; the other multiplications see 512 tokens."""
    lines = [
        line
        for line in gemms((1, 1.0), (16, 1.0), (512, 1.0))
        if not line.startswith("gemm,512,1282")
    ]
    assert measured_kernels(llama(kernel_file.read(written(tmp_path, *lines))), 1) is not None


def test_a_step_far_beyond_the_table_is_refused_where_it_comes(tmp_path: Path) -> None:
    """A strategy's own chunk_size, or whole prompts in a step, may exceed the engine's limit."""
    where = llama(kernel_file.read(written(tmp_path, *gemms((1, 1.0), (512, 1.0)))))
    times = source_of(where)(where, 1)
    assert times.step_s(StepShape(0, 0, ((2048, 0),), 1, 0)) > 0
    with pytest.raises(
        ConfigError, match="column m of gemm of bf16 goes to 512, and a step has 2049"
    ):
        times.step_s(StepShape(0, 0, ((2049, 0),), 1, 0))


def test_elementwise_kernels_far_from_their_rows_stay_with_the_law(tmp_path: Path) -> None:
    """Norms of 4096 beside rows of 64, activations beside rows of their own."""
    lines = [f"norm,{m},64,,,,,,,,,bf16,2.0" for m in (1, 512)]
    lines += [f"activation,{m},14336,,,,,,,,,bf16,7.0" for m in (1, 512)]
    table = kernel_file.read(written(tmp_path, *lines))
    law, own = (kernels_us(where, decodes(1, 9)) for where in (llama(), llama(table)))
    assert own["activation"] == pytest.approx(7.0, abs=1e-3)
    assert own["input_norm"] == law["input_norm"]
    measured = measured_kernels(llama(table), 1)
    assert measured is not None
    assert measured.coverage().measured == {
        "elementwise": "activation; by the law: input_norm, post_norm, final_norm"
    }


def test_a_file_without_a_row_of_the_model_is_refused(tmp_path: Path) -> None:
    """Experts and 8-bit weights of a dense model in 16 bits: the law would count throughout."""
    lines = ["moe,1,7168,4096,,,,,,8,2,bf16,90", gemm(1, *QKV, 9.0, "fp8")]
    lines += ["attention_decode,,,,1,99,32,8,128,,,fp8,9"]
    with pytest.raises(ConfigError, match="no row is of a kernel that") as error:
        measured_kernels(llama(kernel_file.read(written(tmp_path, *lines))), 1)
    assert "(rows of attention with a cache of fp8, gemm of fp8, moe of bf16)" in str(error.value)


def _unchecked(table: KernelTable, where: Environment) -> OwnKernels:
    class Unchecked(OwnKernels):
        def _check(self) -> None:
            pass

    return Unchecked(table, where.model, where.cluster.gpu, where.engine, 1)


def test_a_number_and_arrays_give_the_same_bits_also_at_knots() -> None:
    """One by one, all at once, in rising order and along one segment."""
    rng = np.random.default_rng(5)
    knots = np.cumsum(rng.integers(3, 400, 9)).astype(float)
    curve = RatioCurve([(x, float(r)) for x, r in zip(knots, rng.uniform(0.1, 9, 9), strict=True)])
    tokens = np.arange(1.0, knots[-1] + 60.0)
    one_by_one = [curve.at(x) for x in tokens.tolist()]
    assert curve.at_all(tokens).tolist() == one_by_one
    for first in (0, 1, int(knots[3]) - 1, int(knots[3])):
        for stride in (1, 7):
            part = tokens[first::stride]
            assert curve.at_rising(part).tolist() == one_by_one[first::stride]
    for low, high in ((1.0, 2.0), (knots[2], knots[3] - 1.0), (knots[-1], knots[-1] + 5.0)):
        line = curve.segment(low, high)
        assert line is not None
        start, value, slope = line
        assert value + slope * (high - start) == curve.at(high)
    assert curve.segment(knots[2] - 1.0, knots[2]) is None


def test_attention_that_is_faster_than_the_laws_latency_leaves_no_line_out(tmp_path: Path) -> None:
    """Steps issued kernel by kernel: a count of tokens that comes again takes as long as at first.

    The lines that matter are sought for attention times from the least one on.
    """
    law = dataclasses.replace(llama(), engine=catalog.engine("eager"))
    rows = [
        f"attention_prefill,{m},,,{batch},0,32,8,128,,,bf16,0.05"
        for m in (1, 512)
        for batch in (1, 4)
    ]
    own = dataclasses.replace(law, kernels=kernel_file.read(written(tmp_path, *rows)))
    asked = source_of(own)(own, 1)
    for tokens in (16, 64, 128, 300):
        alone = StepShape(0, 0, ((tokens, 0),), 1, 0)
        two = StepShape(0, 0, ((tokens - 8, 0), (8, 0)), 1, 0)
        for shape in (alone, two, alone, two):
            assert asked.gpu_s(shape) == source_of(own)(own, 1).gpu_s(shape)


# What is refused, and what is said ---------------------------------------------------------------


REFUSED = {
    "too few rows": (
        gemms((64, 1.0)),
        "column m of gemm of bf16 (n 6144, k 4096) is 64 in all its rows: nothing between.",
    ),
    "rows from 64 on": (
        gemms((64, 1.0), (512, 1.0)),
        "column m of gemm of bf16 (n 6144, k 4096) goes from 64 to 512, and qkv_proj has 1 to 512; "
        "up to 4 times",
    ),
    "rows to 64": (
        gemms((1, 1.0), (64, 1.0)),
        "column m of gemm of bf16 (n 6144, k 4096) goes from 1 to 64, and qkv_proj has 1 to 512; "
        "up to 4 times beyond the table are extrapolated. Measure more, lower engine.chunk_size to "
        "256, or remove",
    ),
    "rows to 64 of one shape": (
        [
            line
            for line in gemms((1, 1.0), (64, 1.0), (512, 1.0))
            if not line.startswith("gemm,512,4096,14336,")
        ],
        "column m of gemm of bf16 (n 4096, k 14336) goes from 1 to 64, and down_proj has 1 to 512",
    ),
    "rows to 64 of all near shapes": (
        [gemm(m, 4096, k, 9.0) for k in (2048, 8192) for m in (1, 512 if k < 8192 else 64)],
        "column m of gemm of bf16 (n 4096, k 8192) goes from 1 to 64, and down_proj has 1 to 512",
    ),
    "one norm": (
        ["norm,1,4096,,,,,,,,,bf16,2.0"],
        "column m of norm (n 4096) is 1 in all its rows",
    ),
    "norms to 64": (
        [f"norm,{m},4096,,,,,,,,,bf16,2.0" for m in (1, 64)],
        "column m of norm (n 4096) goes from 1 to 64, and input_norm has 1 to 512",
    ),
    "other widths": (
        [gemm(1, 512, 512, 5.0), gemm(512, 512, 512, 9.0)],
        "columns n and k of gemm: the nearest row is 8 times off o_proj (n 4096, k 4096, bf16)",
    ),
    "other heads": (
        [
            f"attention_decode,,,,{b},{c},4,1,128,,,bf16,{t}"
            for b, c, t in ((1, 9, 9.0), (64, 9, 20.0), (64, 99, 40.0))
        ],
        "columns num_heads, num_kv_heads and head_dim of attention_decode: the nearest row is 8 ",
    ),
    "one context": (
        [f"attention_decode,,,,{b},99,32,8,128,,,bf16,{t}" for b, t in ((1, 9.0), (64, 20.0))],
        "column context of attention_decode (num_heads 32, num_kv_heads 8, head_dim 128) is 100 in",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_tables_that_are_too_narrow_are_refused_in_one_line(tmp_path: Path, name: str) -> None:
    """File, column, rule, remedy."""
    lines, rule = REFUSED[name]
    table = kernel_file.read(written(tmp_path, *lines))
    with pytest.raises(ConfigError) as error:
        measured_kernels(llama(table), 1)
    message = str(error.value)
    assert message.startswith("engine.kernels = 'mine.csv': ")
    assert rule in message
    assert "remove" in message
    assert "\n" not in message


def test_only_times_of_launches_are_refused(tmp_path: Path) -> None:
    """Rows of mode eager hold CPU time."""
    header = HEADER + ",mode"
    lines = [line + ",eager" for line in gemms((1, 1.0), (512, 1.0))]
    table = kernel_file.read(written(tmp_path, *lines, header=header))
    with pytest.raises(ConfigError, match="all rows have mode"):
        measured_kernels(llama(table), 1)


def test_rows_of_other_gpus_are_left_out_and_none_left_is_refused(tmp_path: Path) -> None:
    """The column gpu, if there is one, must name the GPU of the cluster."""
    header = HEADER + ",gpu"
    lines = gemms((1, 2.0), (512, 2.0))
    both = [line + ",H100 SXM" for line in lines] + [line + ",L4" for line in lines[:1]]
    table = kernel_file.read(written(tmp_path, *both, header=header))
    law, own = (kernels_us(where, decodes(8, 10)) for where in (llama(), llama(table)))
    assert own["qkv_proj"] == pytest.approx(2 * law["qkv_proj"], abs=1e-3)
    only = kernel_file.read(written(tmp_path, *(f"{x},L4" for x in lines), header=header))
    with pytest.raises(DataError, match=r"no rows of H100 SXM \(column gpu: L4\)"):
        measured_kernels(llama(only), 1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("operator,m,n,k,dtype\ngemm,1,2,3,bf16\n", "mine.csv: missing column 'time_us'"),
        ("operator,m,n,dtype,time_us\ngemm,1,2,bf16,3\n", "needs the column 'k'"),
        ("operator,m,n,k,dtype,time_us\ngemm,1,2,3,fp9,3\n", "unknown dtype 'fp9'"),
        ("operator,m,n,k,dtype,time_us\ngemm,1,2,3,bf16,0\n", "must be above 0"),
        ("operator,m,n,k,dtype,time_h\ngemm,1,2,3,bf16,1\n", "unknown unit of 'time_h'"),
        ("", "is empty"),
    ],
)
def test_files_that_are_no_tables_are_refused_in_one_line(
    tmp_path: Path, text: str, message: str
) -> None:
    """As `simcluster calibrate` refuses them."""
    path = tmp_path / "mine.csv"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=message) as error:
        kernel_file.read(path)
    assert "\n" not in str(error.value)


def test_a_parquet_file_is_read_as_the_csv_is(tmp_path: Path) -> None:
    """The same rows, with nulls where an operator uses no column."""
    path = written(tmp_path, *by_law(llama()))
    pd.read_csv(path).to_parquet(tmp_path / "mine.parquet")
    assert kernel_file.read(tmp_path / "mine.parquet").rows == kernel_file.read(path).rows
    (tmp_path / "bad.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match="cannot be read"):
        kernel_file.read(tmp_path / "bad.parquet")


def test_the_coverage_says_what_is_measured_and_how_far_steps_go_beyond(tmp_path: Path) -> None:
    """Classes, numbers of rows, and what is extrapolated."""
    lines = [*gemms((1, 1.0), (256, 1.0)), "issue,1,,,,,,,,,,bf16,5"]
    measured = measured_kernels(llama(kernel_file.read(written(tmp_path, *lines))), 1)
    assert measured is not None
    first, beyond, unused = measured.coverage().lines
    assert first == (
        "mine.csv: measured are GEMM (rows: 10 of bf16); prefill attention, decode attention, "
        "elementwise by the law, collectives by the links"
    )
    every = "qkv_proj, o_proj, up_proj, down_proj"  # the LM head sees 64 sequences at most
    assert f"gemm of bf16 ({every}) at m of 1 to 512 (table: 1 to 256)" in beyond
    assert unused == "rows of CPU time are not used"


def test_every_operator_of_a_file_is_used_or_said_not_to_be(tmp_path: Path) -> None:
    """Rows of one multiplication of experts are no call of a whole layer."""
    used = {"gemm", "moe", "attention_prefill", "attention_decode", *_ELEMENTWISE}
    assert used | set(_UNUSED) == set(kernel_file.NEEDS)
    lines = [*gemms((1, 1.0), (512, 1.0)), "grouped_gemm,8,4096,4096,,,,,,8,2,bf16,50"]
    measured = measured_kernels(llama(kernel_file.read(written(tmp_path, *lines))), 1)
    assert measured is not None
    assert measured.coverage().lines[-1] == (
        "rows of single multiplications of experts are not used"
    )


@pytest.mark.parametrize(
    ("dtype", "brought"), [("bf16", False), ("fp8", True), ("fp8-block", True)]
)
def test_bringing_inputs_to_8_bits_is_added_to_what_a_file_has(
    tmp_path: Path, dtype: str, brought: bool
) -> None:
    """A file has the multiplication alone; behind attention the engine has a kernel before it."""
    lines = [gemm(m, 4096, 4096, 40.0, dtype) for m in (1, 64, 512)]
    where = llama(kernel_file.read(written(tmp_path, *lines)))
    where = dataclasses.replace(
        where, model=dataclasses.replace(where.model, weight_dtype=dtype, kv_dtype=None)
    )
    gpu, engine = where.cluster.gpu, where.engine
    timer = KernelTimer(gpu, engine.kernel_generation, quantises=engine.quantises)
    operators = layer_operators(where.model, where.model.spec.layers[0].layer, 1, 64)
    output = next(op for op in operators if op.name == "o_proj")
    measured = measured_kernels(where, 1)
    assert measured is not None
    (time_s,) = measured.times([output], timer)
    # 2 bytes of each number read and 1 written.
    before_s = timer.elementwise_s(3.0 * 64 * 4096, "activation") if brought else 0.0
    assert time_s == pytest.approx(40e-6 + before_s, rel=1e-9)


# In a scenario -----------------------------------------------------------------------------------


SCENARIO = """
[model]
name = "llama-3.1-8b"

[cluster]
gpu = "H100"
nodes = 1

[engine]
kernels = "mine.csv"
max_num_seqs = 64
chunk_size = 512
max_model_len = 4096

[workload]
rate_rps = 5
num_requests = 30

[workload.lengths]
kind = "lognormal"
prompt_median = 200
prompt_sigma = 0.1
output_median = 20
output_sigma = 0.1

[[strategy]]
name = "one"
kind = "nodg"
instances = 1

[slo]
tpot_s = 1.0
{more}
"""


def scenario_file(folder: Path, more: str = "") -> Path:
    """Return the path of a scenario whose kernels are those of a file beside it."""
    written(folder, *gemms((1, 3.0), (512, 3.0)))
    path = folder / "scenario.toml"
    path.write_text(SCENARIO.format(more=more), encoding="utf-8")
    return path


def test_a_run_says_its_kernels_and_is_slower_by_them(tmp_path: Path) -> None:
    """Multiplications of three times the law's time; the heading says where they come from."""
    path = scenario_file(tmp_path)
    found = scenario.load(path)
    law = scenario.load(path, {"engine.kernels": "law"})
    lines = kernel_lines(found)
    assert lines[0].startswith("mine.csv: measured are GEMM (rows: 10 of bf16)")
    assert kernel_lines(law) == []
    assert lines[0] in " ".join(heading(found).split())
    slow, fast = (compare(one, jobs=1) for one in (found, law))
    means = [one.requests()["tpot_s"].mean() for one in (slow, fast)]
    assert 2.0 < means[0] / means[1] < 3.0


@pytest.mark.parametrize(
    ("value", "rule"),
    [
        ("table", "is neither a known source nor a file"),
        ("aiconfig", "is neither a known source nor a file"),
        ("absent.csv", "no such file"),
    ],
)
def test_values_that_name_nothing_are_refused(tmp_path: Path, value: str, rule: str) -> None:
    """One line with the key and what may stand there."""
    path = scenario_file(tmp_path)
    with pytest.raises(ConfigError, match=rule) as error:
        scenario.load(path, {"engine.kernels": value})
    assert str(error.value).startswith("engine.kernels = ")


MOE = """
[model]
name = "mixtral-8x7b"

[cluster]
gpu = "H100"
nodes = 1
gpus_per_node = 4

[engine]
kernels = "moe.csv"
max_num_seqs = 64
chunk_size = 512
max_model_len = 4096

[workload]
rate_rps = 5
num_requests = 5
lengths = { kind = "fixed", prompt_len = 200, output_len = 5 }

[slo]
tpot_s = 1.0
"""
LAYOUTS = {
    "tp": {"tp_size": 4},
    "ep": {"tp_size": 4, "ep_size": 4},
    "dp": {"tp_size": 1, "dp_size": 4},
    "dp-ep": {"tp_size": 1, "dp_size": 4, "ep_size": 4},
}


def with_experts(folder: Path, layout: str, kernels: str = "moe.csv") -> scenario.Scenario:
    """Return a scenario of Mixtral whose experts take seconds by the file, under a layout."""
    rows = [f"moe,{m},{n},4096,,,,,,8,2,bf16,9e6" for m in (1, 512) for n in (3584, 14336)]
    (folder / "moe.csv").write_text("\n".join([HEADER, *rows]) + "\n", encoding="utf-8")
    path = folder / "scenario.toml"
    path.write_text(MOE, encoding="utf-8")
    strategy = {"name": layout, "kind": "nodg", **LAYOUTS[layout]}
    return scenario.load(path, {"strategy": [strategy], "engine.kernels": kernels})


@pytest.mark.parametrize("layout", LAYOUTS)
def test_experts_of_a_file_are_used_where_the_tensor_parallel_group_has_them_all(
    tmp_path: Path, layout: str
) -> None:
    """Spread over other GPUs a rank has other experts and tokens: a file without more is refused.

    Also where each rank has whole experts, whose width is that of the rows.
    """
    if layout == "tp":
        slow = compare(with_experts(tmp_path, layout), jobs=1).requests()["tpot_s"]
        assert slow.min() > 9.0
        return
    with pytest.raises(ConfigError, match="no row is used: it has experts alone") as error:
        with_experts(tmp_path, layout)
    assert "\n" not in str(error.value)
    shape = Layout(**LAYOUTS[layout])
    law = with_experts(tmp_path, layout, "law").environment
    own = dataclasses.replace(law, kernels=kernel_file.read(tmp_path / "moe.csv"))
    step = decodes(8, 100)
    times = [roofline_step_time(one, shape.tp_size, layout=shape) for one in (law, own)]
    assert [one.gpu_s(step) for one in times] == [times[0].gpu_s(step)] * 2


def test_the_heading_says_once_what_each_layout_uses(tmp_path: Path) -> None:
    """Two strategies, one of which spreads the experts."""
    one = with_experts(tmp_path, "tp")
    rows = [{"name": name, "kind": "nodg", **LAYOUTS[name]} for name in ("tp", "ep")]
    both = scenario.load(tmp_path / "scenario.toml", {"strategy": rows})
    rest = "GEMM, prefill attention, decode attention, elementwise by the law, collectives by the"
    measured = f"moe.csv: measured are experts (rows: 4 of bf16); {rest} links"
    assert kernel_lines(one) == [measured]
    rest = rest.replace("GEMM,", "GEMM, experts,")
    assert kernel_lines(both) == [
        f"TP 4: {measured}",
        f"TP 4 with ep_size or dp_size: moe.csv: measured are none; {rest} links",
        "TP 4 with ep_size or dp_size: experts by the law, which ep_size or dp_size spreads",
    ]


class OfToyTable(StepTimeSource):
    """Step times of a toy model with a table of made-up ratios."""

    def __call__(self, environment: Environment, tp_size: int) -> StepTime:
        """Return the step times of an instance."""
        return source_of(self._tabled(environment))(self._tabled(environment), tp_size)

    def stages(
        self, environment: Environment, tp_size: int, pp_size: int, *, key: str
    ) -> tuple[StageTime, ...] | None:
        """Return the stages of a pipeline."""
        where = self._tabled(environment)
        return source_of(where).stages(where, tp_size, pp_size, key=key)

    def beside_transfers(
        self, environment: Environment, tp_size: int, wire_share: float
    ) -> StepTime | None:
        """Return the step times where collectives get a share of the wires."""
        where = self._tabled(environment)
        return source_of(where).beside_transfers(where, tp_size, wire_share)

    def _tabled(self, environment: Environment) -> Environment:
        return dataclasses.replace(environment, kernels=toy_table())


@functools.cache
def toy_table() -> KernelTable:
    """Return rows of every class that the toy models have, rough in all columns."""
    calls = []
    for m in (1, 3, 60, 300, 4000, 40000):
        for n in (256, 1024, 4096):
            calls += [KernelCall("gemm", "bf16", False, m=m, n=n, k=k) for k in (128, 512, 2048)]
            calls += [KernelCall(name, "bf16", False, m=m, n=n) for name in ("norm", "activation")]
        calls.append(KernelCall("moe", "bf16", False, m=m, n=256, k=512, num_experts=4, top_k=2))
    for batch in (1, 5, 200):
        for context in (0, 30, 31, 900):
            heads = {"num_heads": 8, "num_kv_heads": 4, "head_dim": 64}
            calls.append(
                KernelCall("attention_decode", "bf16", False, batch=batch, context=context, **heads)
            )
            calls += [
                KernelCall(
                    "attention_prefill", "bf16", False, m=m, batch=batch, context=context, **heads
                )
                for m in (8, 600, 40000)
            ]
    rows = [KernelRow(call, 1e-6 * (5.0 + 7919 * i % 83)) for i, call in enumerate(calls)]
    return KernelTable("toy.csv", tuple(rows))


class TestTabledStepTimes(StepTimeContract):
    """All that every source of step times keeps: a table changes no law of them."""

    @pytest.fixture
    def step_time(self) -> StepTimeFactory:
        """Return the source."""
        return OfToyTable()


def test_a_table_costs_the_engine_loop_little() -> None:
    """A long run of decode steps and many short ones, in CPU time, in alternation.

    A loose bound: the loop may not come near the time that a look-up each would cost.
    """
    where = toy_environment(TOY_ENGINES[1], STRICT, TOYS[0])
    models = [source_of(where)(where, 1), OfToyTable()(where, 1)]

    def cpu_s(model: StepTime) -> float:
        start = time.process_time()
        for context in range(100, 3100):
            model.decode_ends_s(0.0, 16, 16 * context, 8)
        return time.process_time() - start

    for model in models:
        cpu_s(model)
    law_s, table_s = (min(cpu_s(model) for _ in range(5)) for model in models)
    assert table_s < 3 * law_s


def test_the_page_shows_the_heading_of_its_example(tmp_path: Path) -> None:
    """Word for word, with the command that it names: which kernels the file leaves to the law."""
    root = Path(__file__).resolve().parents[2]
    page = (root / "docs" / "kernel-times.md").read_text(encoding="utf-8")
    path = tmp_path / "mine.csv"
    path.write_text(page.split("```csv\n")[1].split("```")[0], encoding="utf-8")
    changes = {"cluster.gpu": "H100", "engine.kernels": str(path)}
    lines = heading(scenario.load(root / "scenarios" / "first.toml", changes)).splitlines()
    first = next(i for i, line in enumerate(lines) if line.startswith("Step times"))
    assert page.split("```text\n")[1].split("```")[0].splitlines() == lines[first:-1]


def test_the_example_of_the_page_is_a_table_that_is_used(tmp_path: Path) -> None:
    """The file in docs/kernel-times.md, as it stands there, serves the model that it names."""
    page = Path(__file__).resolve().parents[2] / "docs" / "kernel-times.md"
    block = page.read_text(encoding="utf-8").split("```csv\n")[1].split("```")[0]
    path = tmp_path / "page.csv"
    path.write_text(block, encoding="utf-8")
    where = llama(kernel_file.read(path))
    got = kernels_us(where, decodes(64, 1024))
    assert got["qkv_proj"] == pytest.approx(19.8, abs=1e-3)
    measured = measured_kernels(where, 1)
    assert measured is not None
    assert set(measured.coverage().measured) == {"GEMM", "decode attention"}
