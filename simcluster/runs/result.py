"""A result: the frames of one run, and where and when it was."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Final

from simcluster.errors import DataError
from simcluster.frames.packed import num_rows
from simcluster.frames.schema import Columns, frame, schema_of

if TYPE_CHECKING:
    import pandas as pd

    from simcluster.frames.summary import Summary

FRAMES: Final = (
    "requests",
    "spans",
    "segments",
    "transfers",
    "links",
    "windows",
    "scaling",
    "instances",
)
"""Frames of a run."""
SUMMARY_FRAMES: Final = ("scaling", "instances")
"""Those that a run keeps of which only a summary is kept (``run.recorder``)."""


class Kept(dict[str, Columns]):
    """Frames of a run by name; asking for one that a summary does not keep says so."""

    def __missing__(self, name: str) -> Columns:
        """Refuse it.

        Raises
        ------
        DataError
            If a run has such a frame.
        KeyError
            If none has.
        """
        if name in FRAMES:
            raise not_kept(name)
        raise KeyError(name)


def not_kept(name: str) -> DataError:
    """Return the line for a frame that a summary does not keep."""
    return DataError(
        f'run.recorder = "summary" keeps no {name}: plots, timelines and reports need '
        'them. Run again with run.recorder = "frames".'
    )


def _frame(name: str) -> cached_property[pd.DataFrame]:
    """Return the property of a `Result` that is its frame called `name`."""
    return cached_property(lambda result: result.frame(name))


@dataclass(frozen=True, repr=False)
class Result:
    """What one run gave."""

    strategy: str
    """Name of the strategy."""
    rate_rps: float
    """Offered rate (requests/s); NaN in a closed loop."""
    seed: int
    """Seed of the run."""
    num_gpus: int
    """GPUs the strategy used, the most at a time."""
    columns: dict[str, Columns]
    """Frame name to columns, as in `simcluster.frames.schema`."""
    end_s: float
    """When the last request ended (s)."""
    num_events: int
    """SimPy events."""
    summary: Summary | None = None
    """What was counted, of a run without frames (``run.recorder = "summary"``)."""

    def __repr__(self) -> str:
        found = "summary"
        if "requests" in self.columns:
            found = f"{num_rows(self.columns['requests'])} requests"
        return (
            f"Result({self.strategy!r}, {self.rate_rps:g} requests/s, seed {self.seed}: "
            f"{found}, {self.num_gpus} GPUs)"
        )

    def frame(self, name: str) -> pd.DataFrame:
        """Return the frame called `name`, one of `FRAMES`."""
        columns = self.columns[name]
        return frame(columns, schema_of(name, columns))

    requests = _frame("requests")
    """One row per arrived request."""
    spans = _frame("spans")
    """One row per run of equal steps."""
    segments = _frame("segments")
    """One row per stay of a request in a decode batch."""
    transfers = _frame("transfers")
    """One row per KV transfer."""
    links = _frame("links")
    """Bytes and utilisation of every link in equal intervals of time."""
    windows = _frame("windows")
    """One row per prefill window of a macro instance."""
    scaling = _frame("scaling")
    """One row per instance that came or went, and per split and merge."""
    instances = _frame("instances")
    """One row per instance."""
