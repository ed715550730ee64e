"""The plain CSV of ``docs/calibration.md``: what a user measures, checked row by row."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from simcluster.catalog.kernel_file import NONE, NUMBERS, calls_of
from simcluster.errors import DataError
from simcluster.fidelity.calibrate.readers.samples import BYTES, Samples, samples


def read(path: Path, gpu: str = "") -> Samples:
    """Read a CSV of kernel times.

    Parameters
    ----------
    path : Path
        File, ``.gz`` or not.
    gpu : str
        Rows whose column `gpu` names another one are left out; empty for all.

    Returns
    -------
    Samples
        One row per call; the median of its repeats. Grouped by `n` (GEMM) and head count.

    Raises
    ------
    DataError
        If a column, a value or a time is missing or out of range, a unit, operator or dtype is
        unknown, or repeats of one call differ by more than a factor of two.
    """
    found = calls_of(path, gpu, tuple(BYTES))
    if not found:
        raise DataError(f"{path.name}: no rows{f' of {gpu}' if gpu else ''}")
    calls = [call for call, _ in found]
    operators = np.array([call.operator for call in calls])
    numbers = {}
    for name in NUMBERS:
        values = np.array([getattr(call, name) for call in calls], dtype=np.float64)
        numbers[name] = np.where(values == NONE, np.nan, values)
    return samples(
        operators,
        [float(np.median([time for _, time in times])) for times in found.values()],
        num_bytes=[BYTES[call.dtype] for call in calls],
        eager=[call.eager for call in calls],
        group=_groups(operators, numbers),
        cold=True,
        **numbers,
    )


def _groups(
    operators: np.ndarray[tuple[int], np.dtype[np.str_]],
    numbers: dict[str, np.ndarray[tuple[int], np.dtype[np.float64]]],
) -> list[str]:
    """What is held out together: widths of multiplications, head counts of attention."""
    return [
        f"{numbers['num_heads'][i]:g}" if name.startswith("attention") else f"{numbers['n'][i]:g}"
        for i, name in enumerate(operators)
    ]
