"""Reading a table of a published set: which columns it must have, and them as arrays."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from simcluster.errors import DataError
from simcluster.units import FloatArray

if TYPE_CHECKING:
    import pandas as pd


def table(path: Path, columns: Iterable[str]) -> pd.DataFrame:
    """Read a CSV and check its columns.

    Raises
    ------
    DataError
        If the file cannot be read or a column is missing.
    """
    import pandas as pd

    try:
        frame = pd.read_csv(path)
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({error})") from None
    missing = [name for name in columns if name not in frame]
    if missing:
        raise DataError(f"{path.name}: missing column {', '.join(map(repr, missing))}")
    return frame


def column(frame: pd.DataFrame, name: str) -> FloatArray:
    """Return a column as float64, shape ``(n,)``."""
    if name not in frame:
        raise DataError(f"missing column {name!r}")
    return np.asarray(frame[name], dtype=np.float64)
