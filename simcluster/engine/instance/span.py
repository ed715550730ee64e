"""The span of an instance: the run of steps under way, as one object."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from typing import Final

from simcluster.sched import StepPlan

_NONE: Final[list[float]] = []


class Span:
    """Steps under way in an instance, one event: whatever ends them early resets this object.

    Attributes
    ----------
    plan : StepPlan or None
        What the steps compute; None while nothing runs.
    start_s : float
        Start of the first step (s).
    ends : list of float
        End times of the steps (s), of more of them than will be done if the span was cut.
    num_steps : int
        How many of them will be done; 0 while nothing runs.
    copies_s : float
        Copies of swapped KV that the first step starts with (s).
    hidden_s : float
        GPU time of the step before, under which host work of the first step was done (s). It
        outlives its span: the next one begins with it, if it follows without a pause.
    num_waiting : int
        Requests that waited when the span began.
    """

    __slots__ = (
        "copies_s",
        "ends",
        "hidden_s",
        "num_steps",
        "num_waiting",
        "plan",
        "start_s",
    )

    def __init__(self) -> None:
        self.plan: StepPlan | None = None
        self.start_s = 0.0
        self.ends: list[float] = []
        self.num_steps = 0
        self.copies_s = 0.0
        self.hidden_s = 0.0
        self.num_waiting = 0

    def begin(self, plan: StepPlan, now: float, copies_s: float) -> None:
        """Begin the steps of `plan` at `now` (s); a runner says when they end."""
        self.plan = plan
        self.start_s = now
        self.copies_s = copies_s

    def clear(self) -> None:
        """Nothing runs any more; of thousands of instances that wait, none keeps its last ends."""
        self.plan = None
        self.ends = _NONE
        self.num_steps = 0

    def steps_ended(self, now: float) -> int:
        """Steps that have ended at `now` (s)."""
        return min(bisect_right(self.ends, now), self.num_steps)

    def steps_begun(self, now: float) -> int:
        """Steps that have begun before `now` (s): at a boundary the next one has not."""
        return bisect_left(self.ends, now) + 1

    def steps_begun_by(self, now: float) -> int:
        """Steps that have begun at `now` (s) or before."""
        return bisect_right(self.ends, now) + 1
