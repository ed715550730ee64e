"""NVFP4 multiplications against measured ones, and where the 4-bit peak is not used."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from simcluster import catalog
from simcluster.catalog.layers import WEIGHT_DTYPES
from simcluster.roofline.kernels import KernelTimer
from simcluster.roofline.operators import Operator
from simcluster.units import FloatArray

LARGE = (8192, 8192, 8192)
"""Rows, columns and inner width of a multiplication that arithmetic rules."""

MEASURED: dict[str, list[tuple[int, int, int, float]]] = {
    "B200": [
        (1024, 8192, 8192, 0.0415),
        (1024, 16384, 4096, 0.0432),
        (4096, 4096, 8192, 0.0788),
        (4096, 8192, 4096, 0.0747),
        (4096, 16384, 8192, 0.2516),
        (8192, 8192, 8192, 0.2576),
        (8192, 16384, 4096, 0.2452),
    ],
    "B300": [
        (1024, 8192, 8192, 0.0397),
        (1024, 16384, 4096, 0.0402),
        (4096, 4096, 8192, 0.0793),
        (4096, 8192, 4096, 0.0705),
        (4096, 16384, 8192, 0.2207),
        (8192, 8192, 8192, 0.2300),
        (8192, 16384, 4096, 0.3056),
    ],
    "RTX PRO 6000": [
        (1024, 8192, 8192, 0.1128),
        (1024, 16384, 4096, 0.1130),
        (4096, 4096, 8192, 0.2784),
        (4096, 8192, 4096, 0.2338),
        (4096, 16384, 8192, 0.8523),
        (8192, 8192, 8192, 0.9158),
        (8192, 16384, 4096, 0.8599),
    ],
}
"""Rows, columns, inner width and ms of FlashInfer's NVFP4 kernel in vLLM 0.24.

aiconfigurator-core 0.12.0, systems/data/*/gemm/vllm/0.24.0 (Apache-2.0), seven large shapes each.
"""


def times_s(timer: KernelTimer, shapes: Sequence[tuple[int, int, int]], dtype: str) -> FloatArray:
    """Times of dense projections of these rows, columns and inner widths (s)."""
    return np.array([timer.operator_s(gemm(*shape, dtype)) for shape in shapes])


def gemm(m: int, n: int, k: int, dtype: str) -> Operator:
    """A dense projection with weights of a dtype."""
    weights = WEIGHT_DTYPES[dtype]
    moved = weights.num_bytes * n * k + 2.0 * m * (n + k)
    return Operator(
        "down_proj",
        "gemm",
        2.0 * m * n * k,
        moved,
        float(n * k),
        weights.num_bytes,
        rows=float(m),
        cols=float(n),
        groups=1.0,
        arithmetic=weights.arithmetic,
    )


@pytest.mark.parametrize("name", MEASURED)
def test_large_nvfp4_multiplications_are_near_the_measured_ones(name: str) -> None:
    """30 % in the mean; in 16 bits they would take 1.5 times as long and more."""
    gpu = catalog.gpu(name)
    shapes = [(m, n, k) for m, n, k, _ in MEASURED[name]]
    found = np.array([1e-3 * ms for *_, ms in MEASURED[name]])
    in_4 = times_s(KernelTimer(gpu), shapes, "nvfp4")
    in_16 = times_s(KernelTimer(replace(gpu, mfu_4bit=None)), shapes, "nvfp4")
    assert np.abs(in_4 / found - 1).mean() < 0.3
    assert (in_16 / found).mean() > 1.5


@pytest.mark.parametrize("name", ["H100", "MI355X", "RTX 5090"])
def test_without_a_measured_rate_nvfp4_is_multiplied_in_16_bits(name: str) -> None:
    """A peak alone says nothing of what kernels reach."""
    timer = KernelTimer(catalog.gpu(name))
    nvfp4, int4 = (times_s(timer, [LARGE], dtype) for dtype in ("nvfp4", "int4"))
    assert nvfp4 == pytest.approx(int4, rel=0.01)


def test_mxfp4_weights_never_use_the_4_bit_peak() -> None:
    """Engines give them inputs of 16 bits."""
    timer = KernelTimer(catalog.gpu("B200"))
    mxfp4, nvfp4 = (times_s(timer, [LARGE], dtype) for dtype in ("mxfp4", "nvfp4"))
    assert mxfp4 > 1.7 * nvfp4


def test_published_fp4_peaks_are_in_the_catalogue() -> None:
    """A rack of 72 GB300: 1,080 PFLOPS dense; MI355X multiplies MXFP4 twice as fast as FP8."""
    gb300, mi355x = catalog.gpu("GB300"), catalog.gpu("MI355X")
    assert gb300.flops_4bit == pytest.approx(1080e15 / 72)
    assert mi355x.flops_8bit is not None
    assert mi355x.flops_4bit == pytest.approx(2.0 * mi355x.flops_8bit, rel=0.001)
    assert mi355x.native_4bit == ("mxfp4",)
    assert catalog.gpu("H100").flops_4bit is None
