"""Measured kernels of any source in one table: the columns of ``docs/calibration.md``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from simcluster.catalog.kernel_file import NEEDS, NUMBERS
from simcluster.units import FloatArray, IntArray

Texts = npt.NDArray[np.str_]
Mask = npt.NDArray[np.bool_]

BYTES: Final[Mapping[str, float]] = {
    "bf16": 2.0,
    "fp16": 2.0,
    "fp8": 1.0,
    "int8": 1.0,
    "int4": 0.5,
}
"""Bytes of one number of each dtype."""

ELEMENTWISE: Final[Mapping[str, tuple[str, float]]] = {
    "norm": ("norm", 4.0),
    "norm_only": ("norm", 2.0),
    "rope": ("rope", 2.0),
    "activation": ("activation", 3.0),
    "add": ("add", 3.0),
    "embedding": ("embedding", 2.0),
    "kv_write": ("other", 2.0),
    "sampler": ("other", 5.0),
}
"""Class of each elementwise kernel, and numbers of 16 bits it moves per element."""


@dataclass(frozen=True, slots=True, eq=False)
class Samples:
    """Measured kernels, all arrays of shape ``(n,)``."""

    operator: Texts
    """Keys of `NEEDS`."""
    numbers: Mapping[str, FloatArray]
    """The columns `NUMBERS`; NaN where an operator does not use them."""
    bytes: FloatArray
    """Bytes of a weight (GEMM), of a number in the cache (attention), else of an element."""
    eager: Mask
    """Launched one by one, not in a captured graph."""
    time_s: FloatArray
    """Measured time (s), > 0."""
    group: Texts
    """What is held out together: a model, a width, a head count."""
    layer: IntArray
    """Kernels with one number make up one layer; -1 where they stand alone."""
    cold: Mask
    """Weights and caches were read from memory, as a model reads them, not from a second-level
    cache that held them since the call before."""
    kernel: Texts
    """Of experts: their weights and how their tiles are chosen, as ``"bf16 by-experts"``."""

    def __len__(self) -> int:
        return len(self.time_s)

    def __getitem__(self, name: str) -> FloatArray:
        return self.numbers[name]

    def take(self, keep: Mask) -> Samples:
        """Return the rows where `keep` is true."""
        return Samples(
            self.operator[keep],
            {name: values[keep] for name, values in self.numbers.items()},
            self.bytes[keep],
            self.eager[keep],
            self.time_s[keep],
            self.group[keep],
            self.layer[keep],
            self.cold[keep],
            self.kernel[keep],
        )

    def of(self, *operators: str) -> Samples:
        """Return the rows of these operators."""
        return self.take(np.isin(self.operator, operators))

    @property
    def operators(self) -> list[str]:
        """Operators that occur, in the order of `NEEDS`."""
        found = set(self.operator.tolist())
        return [name for name in NEEDS if name in found]


def samples(
    operator: str | Sequence[str] | Texts,
    time_s: npt.ArrayLike,
    *,
    num_bytes: npt.ArrayLike = 2.0,
    eager: npt.ArrayLike = False,
    group: npt.ArrayLike = "",
    layer: npt.ArrayLike = -1,
    cold: npt.ArrayLike = False,
    kernel: npt.ArrayLike = "",
    **numbers: npt.ArrayLike,
) -> Samples:
    """Build rows from columns; what is one value is the same in every row.

    Rows without a positive time are dropped: published sets have them where a run failed.
    """
    time = np.asarray(time_s, dtype=np.float64)
    shape = time.shape

    def column(values: npt.ArrayLike, dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        return np.array(np.broadcast_to(np.asarray(values, dtype=dtype), shape))

    rows = Samples(
        column(operator, np.str_),
        {name: column(numbers.get(name, np.nan), np.float64) for name in NUMBERS},
        column(num_bytes, np.float64),
        column(eager, np.bool_),
        time,
        column(group, np.str_),
        column(layer, np.int64),
        column(cold, np.bool_),
        column(kernel, np.str_),
    )
    return rows.take(time > 0.0)


def joined(parts: Iterable[Samples]) -> Samples:
    """Return the rows of several tables one after another; layers stay apart."""
    tables = [part for part in parts if len(part)]
    if not tables:
        return samples(np.empty(0, np.str_), np.empty(0))
    layers, first = [], 0
    for table in tables:
        layers.append(np.where(table.layer >= 0, table.layer + first, -1))
        first = max(first, int(layers[-1].max()) + 1)
    return Samples(
        np.concatenate([table.operator for table in tables]),
        {name: np.concatenate([table[name] for table in tables]) for name in NUMBERS},
        np.concatenate([table.bytes for table in tables]),
        np.concatenate([table.eager for table in tables]),
        np.concatenate([table.time_s for table in tables]),
        np.concatenate([table.group for table in tables]),
        np.concatenate(layers),
        np.concatenate([table.cold for table in tables]),
        np.concatenate([table.kernel for table in tables]),
    )
