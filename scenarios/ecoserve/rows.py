"""A row of a study: what is served by what, and which goodputs are wanted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cases import Case
from systems import Table


@dataclass(frozen=True, kw_only=True)
class Row:
    """A row of a study.

    Attributes
    ----------
    label : mapping
        What it is called, by column.
    case : Case
        What is served.
    tables : sequence of dict
        The system's options.
    levels : sequence of float
        Attainments whose goodputs are wanted.
    metric : str
        Whose latencies count: ``"ecoserve"`` or ``"user"``.
    replications : int
        Runs at each of the two rates of an estimate.
    scale : int
        What a goodput is multiplied with: copies of the case side by side.
    """

    label: Mapping[str, Any]
    case: Case
    tables: Sequence[Table]
    levels: Sequence[float] = (0.9, 0.99)
    metric: str = "ecoserve"
    replications: int = 4
    scale: int = 1
