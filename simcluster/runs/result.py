"""A result: the frames of one run, and where and when it was."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

import numpy.typing as npt

from simcluster.frames.schema import frame, schema_of

if TYPE_CHECKING:
    import pandas as pd

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


@dataclass(frozen=True, repr=False)
class Result:
    """What one run gave.

    Attributes
    ----------
    strategy : str
        Name of the strategy.
    rate_rps : float
        Offered rate (requests/s); NaN in a closed loop.
    seed : int
        Seed of the run.
    num_gpus : int
        GPUs the strategy used, the most at a time.
    columns : dict
        Frame name to columns, as in `simcluster.frames.schema`.
    end_s : float
        When the last request ended (s).
    num_events : int
        SimPy events.
    """

    strategy: str
    rate_rps: float
    seed: int
    num_gpus: int
    columns: dict[str, dict[str, npt.NDArray[Any]]]
    end_s: float
    num_events: int

    def __repr__(self) -> str:
        requests = len(self.columns["requests"]["request_id"])
        return (
            f"Result({self.strategy!r}, {self.rate_rps:g} requests/s, seed {self.seed}: "
            f"{requests} requests, {self.num_gpus} GPUs)"
        )

    def frame(self, name: str) -> pd.DataFrame:
        """Return the frame called `name`, one of `FRAMES`."""
        columns = self.columns[name]
        return frame(columns, schema_of(name, columns))

    @cached_property
    def requests(self) -> pd.DataFrame:
        """One row per arrived request."""
        return self.frame("requests")

    @cached_property
    def spans(self) -> pd.DataFrame:
        """One row per run of equal steps."""
        return self.frame("spans")

    @cached_property
    def segments(self) -> pd.DataFrame:
        """One row per stay of a request in a decode batch."""
        return self.frame("segments")

    @cached_property
    def transfers(self) -> pd.DataFrame:
        """One row per KV transfer."""
        return self.frame("transfers")

    @cached_property
    def links(self) -> pd.DataFrame:
        """Bytes and utilisation of every link in equal intervals of time."""
        return self.frame("links")

    @cached_property
    def windows(self) -> pd.DataFrame:
        """One row per prefill window of a macro instance."""
        return self.frame("windows")

    @cached_property
    def scaling(self) -> pd.DataFrame:
        """One row per instance that came or went, and per split and merge."""
        return self.frame("scaling")

    @cached_property
    def instances(self) -> pd.DataFrame:
        """One row per instance."""
        return self.frame("instances")
