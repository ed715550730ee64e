"""Host work of a step: what the engine's CPU does before the kernels and after them."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from simcluster.catalog.specs import EngineProfile
from simcluster.roofline.bounded import remember
from simcluster.units import TICKS_PER_S

_CPU_TIMES: Final = (
    "host_before_s",
    "host_after_s",
    "host_per_seq_before_s",
    "host_per_seq_after_s",
    "host_workers_s",
    "issue_s",
    "graph_issue_s",
    "piece_issue_s",
    "front_end_s",
    "front_end_token_s",
    "api_request_s",
    "api_token_s",
)
"""Numbers of an engine profile that depend on the host's CPU."""


def on_cpu(engine: EngineProfile) -> EngineProfile:
    """Return `engine` with its CPU times as they are on a CPU of its `cpu_speed`."""
    if engine.cpu_speed == 1.0:
        return engine
    times = {name: getattr(engine, name) / engine.cpu_speed for name in _CPU_TIMES}
    return replace(engine, cpu_speed=1.0, **times)


class HostWork:
    """Host work of one instance, or of one stage of its pipeline, in ticks.

    Parameters
    ----------
    engine : EngineProfile
        CPU times as they are on its CPU (`on_cpu`).
    num_ranks : int
        GPUs of the instance: several have workers to be told.
    is_first, is_last : bool
        Whether the stage does the work before a step, and the work after it.
    """

    def __init__(
        self, engine: EngineProfile, num_ranks: int, *, is_first: bool, is_last: bool
    ) -> None:
        self._engine = engine
        self._workers_s = engine.host_workers_s if num_ranks > 1 else 0.0
        self._is_first, self._is_last = is_first, is_last
        self._totals: dict[int, float] = {}

    def parts(self, num_seqs: int) -> tuple[float, float]:
        """Host work before and after the kernels of a step with `num_seqs` sequences (ticks)."""
        engine = self._engine
        before = after = 0.0
        if self._is_first:
            before = engine.host_before_s + engine.host_per_seq_before_s * num_seqs
            before += self._workers_s
        if self._is_last:
            after = engine.host_after_s + engine.host_per_seq_after_s * num_seqs
        return float(round(before * TICKS_PER_S)), float(round(after * TICKS_PER_S))

    def total(self, num_seqs: int) -> float:
        """Both parts together (ticks)."""
        known = self._totals.get(num_seqs)
        if known is None:
            known = remember(self._totals, num_seqs, sum(self.parts(num_seqs), 0.0))
        return known
