"""What a trace file is: its format, the unit of its times, the size of its blocks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from simcluster.errors import DataError
from simcluster.units import TICK_S, FloatArray
from simcluster.workload.base import MAX_TOKENS
from simcluster.workload.block_ids import fitting_sizes
from simcluster.workload.cells import id_lists, numbers
from simcluster.workload.formats import DATES, UNITS_S, Layout, TimeUnit, TraceFormat, candidates
from simcluster.workload.records import Chunk
from simcluster.workload.turns import TurnLengths

USUAL_RPS: Final = (0.01, 100.0)
"""Mean rates (requests/s) that nobody wonders at; published traces have 0.2 to 45."""
_EPOCH_S: Final = (1.4e9, 2.2e9)
"""Seconds since 1970 of the years 2014 to 2039: a stamp of this size tells its unit."""
_AMBIGUOUS: Final = ("mooncake", "guidellm")
"""Two formats of the same columns, one in ms and one in s."""
_PLAIN_UNITS: Final = {"arrival_s": "s", "arrival_time_ns": "ns"}
"""Columns whose name says the unit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceOptions:
    """What is said of a trace file."""

    format: TraceFormat = "auto"
    """A format of `simcluster.workload.formats`; ``"auto"`` to tell it by the columns."""
    time_unit: TimeUnit | None = None
    """Unit of the time stamps; None for the format's."""
    block_size: int | None = None
    """Tokens of a block with an id; None for the format's."""
    turns: TurnLengths = "auto"
    """``"whole"``: each row holds its whole prompt; ``"added"``: a later turn holds what is added
    to the turn before and its answer; ``"auto"`` to tell it by lengths and ids."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Understood:
    """What a trace file is."""

    layout: Layout
    """Its columns."""
    unit: str
    """Unit of its times, a key of `formats.UNITS_S`, or `formats.DATES`."""
    block_size: int
    """Tokens of a block with an id; 0 where there are none."""
    notes: tuple[str, ...] = ()
    """What was not proved by the columns alone."""


def understood(file: Path, options: TraceOptions, first: Chunk, *, arrivals: bool) -> Understood:
    """Return what a file is, from what is said of it and from its first rows.

    Raises
    ------
    DataError
        If it fits no format, or the unit or the block size is neither told nor proved.
    """
    known = candidates(file, list(first.columns), options.format, arrivals=arrivals)
    layout = known[0]
    notes: list[str] = []
    if layout.format == "azure-2023" and layout.unit == DATES and options.format == "auto":
        stamp = str(next(iter(first.cells(layout.arrival)), ""))
        if "+" in stamp or stamp.endswith("Z"):  # as published in 2024
            layout = next(one for one in known if one.format == "azure-2024")
    size = _block_size(file, options, layout, first, notes)
    unit: str = options.time_unit or layout.unit
    fixed = _PLAIN_UNITS.get(layout.arrival, layout.unit if layout.unit == DATES else None)
    if options.time_unit is not None and fixed not in (None, options.time_unit):
        raise DataError(
            f"{file}: {layout.arrival} is in {fixed}, not in {options.time_unit}. Leave out "
            "time_unit."
        )
    if arrivals and options.time_unit is None and unit != DATES and fixed is None:
        unit = _unit(file, options, known, layout, first, size, notes)
        if layout.format in _AMBIGUOUS and options.format == "auto":
            layout = next(one for one in known if one.unit == unit or one is known[-1])
    return Understood(layout=layout, unit=unit, block_size=size, notes=tuple(notes))


def _block_size(
    file: Path, options: TraceOptions, layout: Layout, first: Chunk, notes: list[str]
) -> int:
    """Return the tokens of a block, 0 without ids: told, the format's, or the one that fits."""
    if layout.token_ids is not None:
        return options.block_size or layout.block_size or 0
    if layout.ids not in first.columns or layout.ids is None:
        return 0
    num_ids = np.array([len(row) for row in id_lists(file, first, layout.ids)], dtype=np.int64)
    prompts = numbers(file, first, layout.prompt, "must be a number")
    # What is no length is refused where the rows are read.
    sizes = fitting_sizes(np.clip(prompts, 0, MAX_TOKENS).astype(np.int64), num_ids)
    told = options.block_size
    if told is not None:
        if sizes and told not in sizes and told & (told - 1) == 0:
            raise DataError(
                f"{file}: its {layout.ids} are not of blocks of {told} tokens: their number fits "
                f"{_either(sizes)}. Set block_size to that."
            )
        return told
    if layout.block_size in sizes:
        return layout.block_size
    if not num_ids.any():
        return 0
    if len(sizes) == 1:
        if layout.block_size is not None:
            notes.append(
                f"blocks of {sizes[0]} tokens, which the number of {layout.ids} of every row fits, "
                f"in the place of the {layout.block_size} of {layout.format} traces"
            )
        return sizes[0]
    if layout.block_size is None or sizes:
        raise DataError(
            f"{file}: how many tokens a block of {layout.ids} has is not known"
            + (f"; {_either(sizes)} fit" if sizes else "")
            + ". Set block_size in workload.trace."
        )
    return layout.block_size


def _either(sizes: Sequence[int]) -> str:
    return " or ".join(map(str, sizes))


def _unit(
    file: Path,
    options: TraceOptions,
    known: list[Layout],
    layout: Layout,
    first: Chunk,
    size: int,
    notes: list[str],
) -> str:
    """Return the unit of the time stamps of a format whose columns do not say it."""
    cells = numbers(file, first, layout.arrival, "must be a time", missing=math.nan)
    stamps = cells[~np.isnan(cells)]
    if not len(stamps):
        return layout.unit
    epoch = [u for u, s in UNITS_S.items() if _EPOCH_S[0] < stamps[0] * s < _EPOCH_S[1]]
    if epoch and epoch[0] != layout.unit:
        notes.append(f"times in {epoch[0]}: {stamps[0]:.0f} is a date since 1970 in that unit")
    if epoch:
        return epoch[0]
    formats = [one.format for one in known]
    if options.format != "auto" or not set(_AMBIGUOUS) <= set(formats[:2]):
        return layout.unit
    rates = {unit: mean_rate_rps(stamps * UNITS_S[unit]) for unit in ("ms", "s")}
    if None in rates.values():
        return layout.unit  # all at once: the same in any unit
    return _likelier(file, stamps, rates, size, layout, notes)  # type: ignore[arg-type]  # none is None


def _likelier(
    file: Path,
    stamps: FloatArray,
    rates: dict[str, float],
    size: int,
    layout: Layout,
    notes: list[str],
) -> str:
    """Return ms (Mooncake) or s (GuideLLM), whichever the rate and the digits speak for."""
    distance = {unit: _distance(rate) for unit, rate in rates.items()}
    both = f"{rates['ms']:.3g} requests/s in ms, {rates['s']:.3g} in s"
    if distance["ms"] == distance["s"]:
        whole = bool((stamps == np.rint(stamps)).all())
        if whole and size == layout.block_size:
            notes.append(f"times in ms, as Mooncake publishes them with blocks of 512 ({both})")
            return "ms"
        raise DataError(
            f"{file}: {layout.arrival} may be in ms (Mooncake, AIPerf) or in s (GuideLLM): {both}. "
            'Set time_unit = "ms" or "s" in workload.trace.'
        )
    unit = min(distance, key=lambda one: distance[one])
    notes.append(f"times taken to be in {unit} by their rate ({both})")
    return unit


def _distance(rate_rps: float) -> float:
    """Return by which factor (its logarithm) a rate is outside the usual ones."""
    low, high = USUAL_RPS
    return max(math.log(low / rate_rps), math.log(rate_rps / high), 0.0)


def mean_rate_rps(times_s: FloatArray) -> float | None:
    """Return gaps over time (requests/s), None where all come within a tick of the time grid."""
    span_s = float(np.ptp(times_s)) if len(times_s) else 0.0
    return (len(times_s) - 1) / span_s if span_s >= TICK_S else None
