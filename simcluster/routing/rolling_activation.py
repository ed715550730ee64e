"""EcoServe's routing: the instance in its prefill window gets the requests, windows take turns.

PAPERS 1.4 (EcoServe, OSDI version, Algorithm 1): instances form a ring; a request goes to the first
one, from the current on, that meets three constraints. Passing to another instance closes the old
prefill window and opens a new one.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from statistics import fmean
from typing import Final, Protocol

import numpy as np

from simcluster.request import Request
from simcluster.units import FloatArray

SLACK_STATISTICS: Final[dict[str, Callable[[Iterable[float]], float]]] = {
    "mean": fmean,
    "max": max,
    "min": min,
}
"""How the slack of the existing requests is judged, by name."""


class RollingView(Protocol):
    """What rolling activation may know of an instance: its state at its last step boundary."""

    num_lanes: int

    def decode_step_of(self, lane: int) -> int:
        """Decode steps that `lane` has done since the start (a pipeline has several lanes)."""
        ...

    @property
    def free_blocks(self) -> int:
        """Free KV blocks."""
        ...

    @property
    def waiting_blocks(self) -> int:
        """KV blocks that the requests routed to it and not yet admitted will take."""
        ...

    def blocks_for(self, num_tokens: int) -> int:
        """KV blocks that hold `num_tokens` tokens."""
        ...

    def free_blocks_after(self, num_steps: int) -> int:
        """Free KV blocks when `num_steps` steps of its span have ended."""
        ...


class _Ring:
    """Books on one instance of the ring.

    A decoding request gains one token a step, so its saved TPOT at decode step s and time t is
    ``tpot_s * s - t + key`` with a key that stays the same while it decodes: statistics of the
    slack are statistics of the keys.
    """

    __slots__ = ("existing", "lanes", "opened_s", "pending_s", "predicted_s", "recent")

    def __init__(self) -> None:
        self.opened_s = 0.0
        self.pending_s = 0.0  # predicted prefill of the requests routed since `opened_s`
        self.predicted_s: dict[int, float] = {}  # of those requests, while they are unfinished
        self.recent: dict[int, float] = {}  # keys of those of them that decode
        self.existing: dict[int, float] = {}  # keys of the decoding requests routed earlier
        self.lanes: dict[int, int] = {}  # of the decoding requests, where there are several

    def reopen(self, now: float) -> None:
        """A window opens or closes: who came before is now existing."""
        self.opened_s = now
        self.pending_s = 0.0
        self.predicted_s.clear()
        self.existing.update(self.recent)
        self.recent.clear()


class RollingActivation:
    """Algorithm 1 of EcoServe: sticky routing around a ring under three constraints.

    Parameters
    ----------
    num_instances : int
        Instances in the ring, >= 1.
    ttft_s, tpot_s : float
        The targets S_TTFT and S_TPOT (s), on the grid.
    slack : str
        How the saved TPOT of the existing requests is judged: ``"mean"`` (the paper), ``"max"``
        (the authors' code) or ``"min"`` (protects every request).

    Attributes
    ----------
    current : int
        The instance in its prefill window.
    """

    def __init__(
        self, num_instances: int, *, ttft_s: float, tpot_s: float, slack: str = "mean"
    ) -> None:
        self.current = 0
        self._ttft_s = ttft_s
        self._tpot_s = tpot_s
        self._judge = SLACK_STATISTICS[slack]
        self._rings = [_Ring() for _ in range(num_instances)]

    def satisfied(
        self,
        index: int,
        request: Request,
        predicted_s: float,
        instance: RollingView,
        now: float,
    ) -> bool:
        """Check the three constraints for `request` on instance `index` at time `now` (s).

        Parameters
        ----------
        index : int
            Position in the ring.
        request : Request
            The request to place.
        predicted_s : float
            Its predicted prefill time (s).
        instance : RollingView
            The instance's state.
        now : float
            Time (s).

        Returns
        -------
        bool
            True if the predicted prefill of the window's requests and this one is within the TTFT
            target, the slack of the existing requests covers it, and the prompt fits in KV memory.
            With nobody decoding from before, the second passes (PAPERS 1.4: our choice).
        """
        ring = self._rings[index]
        total_s = ring.pending_s + predicted_s
        if total_s > self._ttft_s:
            return False
        if ring.existing:
            if instance.num_lanes == 1:
                key = self._judge(ring.existing.values())
                slack_s = self._tpot_s * instance.decode_step_of(0) - now + key
            else:
                slack_s = self._judge(self._credits(ring, instance)) - now
            if slack_s < total_s:
                return False
        needed = instance.blocks_for(request.prompt_len) + instance.waiting_blocks
        return needed <= instance.free_blocks

    def _credits(self, ring: _Ring, instance: RollingView) -> list[float]:
        """Slack plus now (s) of each existing request of an instance with several lanes."""
        steps = [instance.decode_step_of(lane) for lane in range(instance.num_lanes)]
        return [
            self._tpot_s * steps[ring.lanes[number]] + key for number, key in ring.existing.items()
        ]

    def first_pass(
        self,
        index: int,
        request: Request,
        predicted_s: float,
        instance: RollingView,
        ends: FloatArray,
        first: int,
    ) -> int | None:
        """First coming step boundary of instance `index` at which `request` would pass.

        Parameters
        ----------
        index, request, predicted_s, instance
            As in `satisfied`.
        ends : float array, shape ``(num_steps,)``
            End times (s) of the steps of the instance's span.
        first : int
            Steps of the span that have ended; only later boundaries are looked at.

        Returns
        -------
        int or None
            How many steps of the span have ended then; None if it passes at no boundary of the
            span, provided that nothing but the steps happens to the instance. (A pipeline, with its
            several lanes, has no spans.)
        """
        ring = self._rings[index]
        total_s = ring.pending_s + predicted_s
        if total_s > self._ttft_s:
            return None
        step = instance.decode_step_of(0) - first
        passed = first + 1
        if ring.existing:
            key = self._judge(ring.existing.values())
            steps = step + np.arange(first + 1, len(ends) + 1)
            slack = self._tpot_s * steps - ends[first:] + key
            enough = np.flatnonzero(slack >= total_s)
            if not len(enough):
                return None
            passed += int(enough[0])
        # Steps only take blocks, so a prompt that does not fit then fits at no later boundary.
        needed = instance.blocks_for(request.prompt_len) + instance.waiting_blocks
        return passed if needed <= instance.free_blocks_after(passed) else None

    def scan(
        self,
        request: Request,
        predicted_s: float,
        instances: Sequence[RollingView],
        now: float,
        among: Collection[int] | None = None,
    ) -> int | None:
        """Return the first instance, from the current on, that may take `request`; None if none.

        With `among` only those indices are looked at.
        """
        count = len(instances)
        for step in range(count):
            index = (self.current + step) % count
            if (among is None or index in among) and self.satisfied(
                index, request, predicted_s, instances[index], now
            ):
                return index
        return None

    def accept(self, index: int, request: Request, predicted_s: float, now: float) -> bool:
        """Book that `request` goes to instance `index`; return whether its window opens now.

        Passing to another instance stamps the switch on both: the old window closes, a new one
        opens.
        """
        switched = index != self.current
        if switched:
            self._rings[self.current].reopen(now)
            self._rings[index].reopen(now)
            self.current = index
        ring = self._rings[index]
        ring.predicted_s[request.request_id] = predicted_s
        ring.pending_s += predicted_s
        return switched

    def reopen(self, now: float) -> None:
        """The current instance starts a new window of its own: a full round had failed."""
        self._rings[self.current].reopen(now)

    def joined(self, index: int, request: Request, lane: int) -> None:
        """`request` starts to decode in `lane` of instance `index` (again, if preempted)."""
        ring = self._rings[index]
        ring.lanes[request.request_id] = lane
        tokens = request.num_output_tokens - request.decode_step
        key = self._tpot_s * tokens + request.first_token_s
        if request.request_id in ring.predicted_s:
            ring.recent[request.request_id] = key
        else:
            ring.existing[request.request_id] = key

    def left(self, index: int, request: Request, *, finished: bool) -> None:
        """`request` no longer decodes on instance `index`: finished, or preempted."""
        ring = self._rings[index]
        ring.recent.pop(request.request_id, None)
        ring.existing.pop(request.request_id, None)
        ring.lanes.pop(request.request_id, None)
        if finished:
            ring.pending_s -= ring.predicted_s.pop(request.request_id, 0.0)
