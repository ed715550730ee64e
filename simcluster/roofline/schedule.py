"""A step as the dispatcher sees it: kernels in issue order."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class KernelRun:
    """A run of equal layers, as the kernels of one layer."""

    names: tuple[str, ...]
    """Name of each kernel of the layer, length n."""
    issue_s: tuple[float, ...]
    run_s: tuple[float, ...]
    """CPU time to issue it and GPU time to run it (s, on the grid), length n."""
    collective: tuple[bool, ...]
    """The kernel starts when the last rank arrives, length n."""
    repeat: int
    """How many such layers follow one another."""


@dataclass(frozen=True, slots=True)
class KernelSchedule:
    """A step as the dispatcher sees it: host work, kernels in issue order, host work.

    With a captured graph the first kernel carries the whole issue cost and the others none.
    """

    host_before_s: float
    """Host work before the first kernel is issued (s)."""
    runs: tuple[KernelRun, ...]
    """Kernels in issue order, as runs of equal layers."""
    host_after_s: float
    """Host work behind the last kernel (s)."""
