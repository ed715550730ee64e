"""What a fit says: constants as a catalogue table, errors in and out of sample as lines."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import fields
from typing import Final

import numpy as np

from simcluster.catalog.specs import ExpertKernel, GPUSpec, KernelConstants
from simcluster.fidelity.calibrate.fit import (
    decodes_from_memory,
    experts_from_memory,
    gemms_from_memory,
)
from simcluster.fidelity.calibrate.law import by_blocks, kernel_s, layer_sums
from simcluster.fidelity.calibrate.readers.samples import Samples
from simcluster.units import GB, NS, PS, US, FloatArray

_DIGITS: Final = 3
_NOTHING: Final = 1e-4
_IN_US: Final = {
    "fixed_s": "fixed_us",
    "attention_block_s": "attention_block_us",
    "quantise_s": "quantise_us",
    "fixed_block_s": "fixed_block_us",
    "elementwise_fixed_s": "elementwise_fixed_us",
    "norm_fixed_s": "norm_fixed_us",
    "row_s": "row_us",
    "attention_fixed_s": "attention_fixed_us",
    "attention_split_s": "attention_split_us",
    "mixed_block_s": "mixed_block_us",
    "attention_fixed_8bit_s": "attention_fixed_8bit_us",
    "attention_block_8bit_s": "attention_block_8bit_us",
}
_TEXTS: Final = ("generation", "accuracy", "source")


def kernels_row(
    name: str, arch: str, constants: KernelConstants, holds_for: Sequence[str] = ()
) -> dict[str, object]:
    """Return constants as an entry of the catalogue's table ``kernels``, rounded to 3 digits."""
    row: dict[str, object] = {"name": name, "arch": arch}
    for field in fields(constants):
        value = getattr(constants, field.name)
        if field.name in _TEXTS or value in (None, ()):
            continue
        if field.name == "experts":
            row[field.name] = [kernel.name for kernel in value]
            continue
        if field.name == "attention_sm_8bit":
            row["attention_sm_8bit_gb_s"] = rounded(value / GB)
        elif field.name.endswith("_tile"):
            row[field.name] = int(value)
        elif field.name in _IN_US:
            row[_IN_US[field.name]] = rounded(value / US)
        elif field.name.endswith(("_context_s", "_chain_s")):
            row[field.name.removesuffix("_s") + "_ns"] = rounded(value / NS)
        else:
            row[field.name] = rounded(value)
    if constants.generation:
        row["generation"] = constants.generation
    row["accuracy"] = constants.accuracy
    if holds_for:
        row["holds_for"] = list(holds_for)
    row["source"] = constants.source
    return row


def experts_row(kernel: ExpertKernel) -> dict[str, object]:
    """Return a kernel for experts as an entry of the catalogue's table ``experts``."""
    row: dict[str, object] = {
        "name": kernel.name,
        "weights": kernel.weights,
        "tiles": kernel.tiles,
        "mfu": rounded(kernel.mfu),
        "small_tiles": rounded(kernel.small_tiles),
        "large_tiles": rounded(kernel.large_tiles),
        "mbu": rounded(kernel.mbu),
        "smooth_p": rounded(kernel.smooth_p),
        "tile_us": rounded(kernel.tile_s / US),
        "fixed_us": rounded(kernel.fixed_s / US),
        "number_ps": rounded(kernel.number_s / PS),
        "unaligned": rounded(kernel.unaligned),
    }
    if kernel.tuned:
        row["tuned"] = [list(pair) for pair in kernel.tuned]
        row["tuned_gain"] = rounded(kernel.tuned_gain)
    return row | {"source": kernel.source}


def rounded(value: float) -> float:
    """Return `value` to three significant digits; what is next to nothing as 0."""
    if abs(value) < _NOTHING:
        return 0.0
    return round(value, _DIGITS - 1 - math.floor(math.log10(abs(value))))


def from_memory(rows: Samples, gpu: GPUSpec) -> Samples:
    """Return the rows that a fit takes: those that a served model could meet."""
    keep = np.ones(len(rows), dtype=np.bool_)
    for operators, rule in (
        (("gemm",), gemms_from_memory),
        (("attention_prefill", "attention_decode"), decodes_from_memory),
        (("grouped_gemm", "moe"), experts_from_memory),
    ):
        here = np.isin(rows.operator, operators)
        keep[here] = rule(rows.take(here), gpu)
    return rows.take(keep)


def error_lines(rows: Samples, times: FloatArray) -> list[tuple[str, int, float, float, float]]:
    """Return errors by operator, and of whole layers where there are some.

    Returns
    -------
    list of tuple
        Operator, number of rows, mean and 90th percentile of the absolute relative error, and
        bias (mean of the signed one).
    """
    lines = []
    for name in rows.operators:
        here = rows.operator == name
        for title, part in (
            (name, here & ~by_blocks(rows) & ((rows.bytes != 1.0) | (name != "gemm"))),
            (f"{name}, 8-bit", here & (rows.bytes == 1.0) & (name == "gemm")),
            (f"{name}, 8-bit by blocks", here & by_blocks(rows)),
        ):
            if part.any():
                lines.append(_line(title, rows.time_s[part], times[part]))
    if (rows.layer >= 0).any():
        measured, simulated = layer_sums(rows, times)
        lines.append(_line("whole layers", measured, simulated))
    return lines


def _line(
    title: str, measured: FloatArray, simulated: FloatArray
) -> tuple[str, int, float, float, float]:
    error = simulated / measured - 1.0
    size = np.abs(error)
    return (
        title,
        len(error),
        float(size.mean()),
        float(np.quantile(size, 0.9)),
        float(error.mean()),
    )


def timed(rows: Samples, gpu: GPUSpec, constants: KernelConstants) -> tuple[Samples, FloatArray]:
    """Return the kernels of `rows` that the law has times for, and these (s)."""
    times = kernel_s(rows, gpu, constants)
    known = ~np.isnan(times)
    return rows.take(known), times[known]
