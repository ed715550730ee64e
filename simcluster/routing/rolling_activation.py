"""EcoServe's routing: the instance in its prefill window gets the requests, windows take turns.

Two published forms of one idea (EcoServe, arXiv 2504.18154), and an ablation:

- `PaperActivation`: Algorithm 1 of the OSDI text. Instances form a ring; a request goes to the
  first one, from the current on, that meets three constraints, and waits if none does.
- `CodeActivation`: the scheduler that the authors released. Only the current instance is checked;
  if it fails the next one gets the request unchecked, so that nothing ever waits.
- `FixedWindows`: the window passes on after a fixed time, whatever the load.

Passing to another instance closes the old prefill window and opens a new one.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Sequence
from math import ceil, inf, isnan
from statistics import fmean
from typing import Final, Protocol

import numpy as np
from mypy_extensions import mypyc_attr

from simcluster.request import Request, tokens_gained
from simcluster.units import FloatArray

Statistic = Callable[[Collection[float]], float]
"""Judges the slack of the existing requests by one number."""

SLACK_STATISTICS: Final[dict[str, Statistic]] = {"mean": fmean, "max": max, "min": min}
"""How the slack of the existing requests is judged, by name; see also `slack_statistic`."""

CONSTRAINTS: Final = ("ttft", "tpot", "kv")
"""The three constraints of Algorithm 1."""


def slack_statistic(name: str) -> Statistic:
    """Return the statistic called `name`: mean, max, min or ``quantile:q``.

    The q-quantile is an order statistic, the smallest value that a share q of all does not exceed:
    0 gives the smallest, 1 the largest.

    Raises
    ------
    ValueError
        If `name` is none of these, or q is outside 0 to 1.
    """
    if name in SLACK_STATISTICS:
        return SLACK_STATISTICS[name]
    kind, _, number = name.partition(":")
    q = float(number) if kind == "quantile" else -1.0
    if not 0.0 <= q <= 1.0:
        raise ValueError(name)
    return lambda values: sorted(values)[max(ceil(q * len(values)), 1) - 1]


class RollingView(Protocol):
    """What rolling activation may know of an instance: its state at its last step boundary."""

    num_lanes: int

    def decode_step_of(self, lane: int) -> int:
        """Decode steps that `lane` has done since the start (a pipeline has several lanes)."""

    @property
    def has_unfinished(self) -> bool:
        """Whether any request waits or runs."""

    @property
    def free_blocks(self) -> int:
        """Free KV blocks."""

    @property
    def waiting_blocks(self) -> int:
        """KV blocks that the requests routed to it and not yet admitted will take."""

    def prompt_blocks(self, num_tokens: int) -> int:
        """KV blocks that hold `num_tokens` tokens."""

    def free_blocks_after(self, num_steps: int) -> int:
        """Free KV blocks when `num_steps` steps of its span have ended."""


class Ring:
    """Books on one instance of the ring; they move with it to another macro instance.

    A decoding request gains one token a step, so its saved TPOT at decode step s and time t is
    ``tpot_s * s - t + key`` with a key that stays the same while it decodes: statistics of the
    slack are statistics of the keys.

    Attributes
    ----------
    opened_s : float
        When its window last opened or closed (s).
    pending_s : float
        Predicted prefill time of the requests routed since then (s).
    num_unfinished : int
        Requests routed to it and not finished.
    """

    __slots__ = (
        "existing",
        "fresh",
        "lanes",
        "num_routed",
        "num_unfinished",
        "opened_s",
        "pending_s",
        "predicted_s",
        "recent",
        "routed_blocks",
    )

    def __init__(self) -> None:
        self.opened_s = 0.0
        self.pending_s = 0.0
        self.num_unfinished = 0
        self.num_routed = 0  # since `opened_s`, finished ones included
        self.routed_blocks = 0  # of those, as the authors' code counts
        self.predicted_s: dict[int, float] = {}  # of those, while they are unfinished
        self.recent: dict[int, float] = {}  # keys of those of them that decode
        self.existing: dict[int, float] = {}  # keys of the decoding requests routed earlier
        self.lanes: dict[int, int] = {}  # of the decoding requests, where there are several
        self.fresh: dict[int, tuple[Request, float]] = {}  # first decode step not yet known

    def reopen(self, now: float) -> None:
        """A window opens or closes: who came before is now existing."""
        self.opened_s = now
        self.pending_s = 0.0
        self.num_routed = 0
        self.routed_blocks = 0
        self.predicted_s.clear()
        self.existing.update(self.recent)
        self.recent.clear()


@mypyc_attr(allow_interpreted_subclasses=True)
class RollingActivation(ABC):
    """Books of a ring of instances and the rule by which windows take turns.

    Parameters
    ----------
    num_instances : int
        Instances in the ring.
    ttft_s, tpot_s : float
        The targets S_TTFT and S_TPOT (s), on the grid.
    slack : str
        How the saved TPOT of the existing requests is judged, as in `slack_statistic`.
    rng : numpy.random.Generator, optional
        Draws the order in which the other instances follow, anew at every window (the ablation of
        EcoServe's evaluation); by default they follow in the order of the ring.

    Attributes
    ----------
    current : int
        The instance in its prefill window, or the next to have one.
    is_open : bool
        Whether a window is open.
    rings : list of Ring
        The books, in the order of the ring.
    """

    def __init__(
        self,
        num_instances: int,
        *,
        ttft_s: float,
        tpot_s: float,
        slack: str,
        rng: np.random.Generator | None = None,
    ) -> None:
        self.current = 0
        self.is_open = False
        self.rings = [Ring() for _ in range(num_instances)]
        self._ttft_s = ttft_s
        self._tpot_s = tpot_s
        self._judge = slack_statistic(slack)
        self._rng = rng
        self._followers: list[int] = []  # drawn; empty: the order of the ring
        self._draw_followers()

    @abstractmethod
    def scan(
        self,
        request: Request,
        predicted_s: float,
        instances: Sequence[RollingView],
        now: float,
        among: Collection[int] | None = None,
    ) -> tuple[int, bool] | None:
        """Choose an instance for `request`.

        Parameters
        ----------
        request : Request
            The request to place.
        predicted_s : float
            Its predicted prefill time (s).
        instances : sequence of RollingView
            The states of the instances, in the order of the ring.
        now : float
            Time (s).
        among : collection of int, optional
            The request waits, and only these have changed since it was offered last; by default it
            has not been offered yet.

        Returns
        -------
        tuple of (int, bool) or None
            Its place in the ring, and whether its window opens now. None: none may take it.
        """

    def never_fits(self, predicted_s: float) -> bool:
        """Whether no instance, not even an empty one, would ever take such a request."""
        return False

    def accept(
        self,
        index: int,
        request: Request,
        predicted_s: float,
        now: float,
        *,
        opens: bool,
        num_blocks: int = 0,
    ) -> None:
        """Book that `request` goes to instance `index`.

        If its window `opens`, the switch is stamped on both instances: the old window closes, a new
        one opens. `num_blocks` are the KV blocks of its prompt.
        """
        if opens:
            self.rings[self.current].reopen(now)
            self.rings[index].reopen(now)
            self.current = index
            self.is_open = True
            self._draw_followers()
        ring = self.rings[index]
        ring.predicted_s[request.request_id] = predicted_s
        ring.pending_s += predicted_s
        ring.num_routed += 1
        ring.num_unfinished += 1
        ring.routed_blocks += num_blocks

    def key_of(self, request: Request) -> float:
        """Key of `request`, which starts to decode: its first token counts (Algorithm 1)."""
        tokens = request.num_output_tokens - tokens_gained(request.decode_step)
        return self._tpot_s * tokens + request.first_token_s

    def joined(self, index: int, request: Request, lane: int, key: float) -> None:
        """`request` starts to decode in `lane` of instance `index` (again, if preempted).

        `key` is its `key_of` then.
        """
        ring, number = self.rings[index], request.request_id
        ring.lanes[number] = lane
        (ring.recent if number in ring.predicted_s else ring.existing)[number] = key

    def left(self, index: int, request: Request, *, finished: bool) -> None:
        """`request` no longer decodes on instance `index`: finished, or preempted."""
        ring, number = self.rings[index], request.request_id
        ring.recent.pop(number, None)
        ring.existing.pop(number, None)
        ring.lanes.pop(number, None)
        if finished:
            ring.pending_s -= ring.predicted_s.pop(number, 0.0)

    def saved_tpot_s(self, instances: Sequence[RollingView], now: float) -> float:
        """Mean saved TPOT of all requests that decode in the ring (s); 0 if none does."""
        saved = [
            credit - now
            for ring, instance in zip(self.rings, instances, strict=True)
            for keys in (ring.existing, ring.recent)
            for credit in self._credits(keys, ring, instance)
        ]
        return fmean(saved) if saved else 0.0

    def _credits(self, keys: dict[int, float], ring: Ring, instance: RollingView) -> list[float]:
        """Slack plus now (s) of each of `keys`, whichever lane it is in."""
        steps = [instance.decode_step_of(lane) for lane in range(instance.num_lanes)]
        return [
            self._tpot_s * tokens_gained(steps[ring.lanes[number]]) + key
            for number, key in keys.items()
        ]

    # --- the ring changes -----------------------------------------------------------------------

    def add(self, ring: Ring) -> None:
        """An instance joins the ring at its end; its window is closed."""
        self.rings.append(ring)
        self._draw_followers()

    def remove(self, index: int) -> Ring:
        """Instance `index` leaves the ring; if its window was open, none is open now."""
        ring = self.rings.pop(index)
        if index == self.current:
            self.is_open = False
        if index < self.current:
            self.current -= 1
        elif self.current == len(self.rings):
            self.current = 0
        self._draw_followers()
        return ring

    def _draw_followers(self) -> None:
        if self._rng is not None:
            self._followers = self._rng.permutation(len(self.rings)).tolist()

    def _order(self) -> list[int]:
        """Places in the ring, from the current one on."""
        count, current = len(self.rings), self.current
        if self._rng is None:
            return [*range(current, count), *range(current)]
        return [current, *(index for index in self._followers if index != current)]

    @property
    def _next(self) -> int:
        """The instance whose turn is next: the current one where there is no other."""
        order = self._order()
        return order[1] if len(order) > 1 else order[0]


@mypyc_attr(allow_interpreted_subclasses=True)
class PaperActivation(RollingActivation):
    """Algorithm 1 of EcoServe (OSDI text, section 3.4): a scan of the ring under three constraints.

    Parameters
    ----------
    num_instances, ttft_s, tpot_s, slack, rng
        As in `RollingActivation`; the paper's statistic is the mean.
    constraints : collection of str
        Which of ``CONSTRAINTS`` are checked; the paper checks all three.
    """

    def __init__(
        self,
        num_instances: int,
        *,
        ttft_s: float,
        tpot_s: float,
        slack: str = "mean",
        rng: np.random.Generator | None = None,
        constraints: Collection[str] = CONSTRAINTS,
    ) -> None:
        super().__init__(num_instances, ttft_s=ttft_s, tpot_s=tpot_s, slack=slack, rng=rng)
        self._longest_s = ttft_s if "ttft" in constraints else inf
        self._checks_tpot = "tpot" in constraints
        self._checks_kv = "kv" in constraints

    def never_fits(self, predicted_s: float) -> bool:
        """Constraint 1 fails on an empty instance too: it would stay pending for ever."""
        return predicted_s > self._longest_s

    def satisfied(
        self, index: int, request: Request, predicted_s: float, instance: RollingView, now: float
    ) -> bool:
        """Check the three constraints for `request` on instance `index` at time `now` (s).

        Returns
        -------
        bool
            True if the predicted prefill of the window's requests and this one is within the TTFT
            target, the slack of the existing requests covers it, and the prompt fits in KV memory.
            With nobody decoding from before, the second passes (our choice).
        """
        ring = self.rings[index]
        total_s = ring.pending_s + predicted_s
        if total_s > self._longest_s:
            return False
        if self._checks_tpot and ring.existing:
            if instance.num_lanes == 1:
                key = self._judge(ring.existing.values())
                gained = tokens_gained(instance.decode_step_of(0))
                slack_s = self._tpot_s * gained - now + key
            else:
                slack_s = self._judge(self._credits(ring.existing, ring, instance)) - now
            if slack_s < total_s:
                return False
        if not self._checks_kv:
            return True
        needed = instance.prompt_blocks(request.prompt_len) + instance.waiting_blocks
        return needed <= instance.free_blocks

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
            several lanes, stops at every boundary instead.)
        """
        ring = self.rings[index]
        total_s = ring.pending_s + predicted_s
        if total_s > self._longest_s:
            return None
        step = instance.decode_step_of(0) - first
        passed = first + 1
        if self._checks_tpot and ring.existing:
            key = self._judge(ring.existing.values())
            steps = step + np.arange(first + 1, len(ends) + 1)
            slack = self._tpot_s * tokens_gained(steps) - ends[first:] + key
            enough = np.flatnonzero(slack >= total_s)
            if not len(enough):
                return None
            passed += int(enough[0])
        if not self._checks_kv:
            return passed
        # Steps only take blocks, so a prompt that does not fit then fits at no later boundary.
        needed = instance.prompt_blocks(request.prompt_len) + instance.waiting_blocks
        return passed if needed <= instance.free_blocks_after(passed) else None

    def scan(
        self,
        request: Request,
        predicted_s: float,
        instances: Sequence[RollingView],
        now: float,
        among: Collection[int] | None = None,
    ) -> tuple[int, bool] | None:
        """Return the first instance, from the current on, that meets the constraints."""
        for index in self._order():
            if (among is None or index in among) and self.satisfied(
                index, request, predicted_s, instances[index], now
            ):
                # A full round failed before (among): the current instance starts a new window.
                # (One that only queued behind such a request has had no round yet.)
                return index, index != self.current or among is not None or not self.is_open
        return None


@mypyc_attr(allow_interpreted_subclasses=True)
class UncheckedActivation(RollingActivation):
    """The current instance keeps its turn or passes it on, unchecked; nothing ever waits."""

    def scan(
        self,
        request: Request,
        predicted_s: float,
        instances: Sequence[RollingView],
        now: float,
        among: Collection[int] | None = None,
    ) -> tuple[int, bool]:
        """Return the current instance if its turn lasts, else the next one."""
        if not self.is_open:
            return self.current, True
        if self._stays(request, predicted_s, instances, now):
            return self.current, False
        return self._next, True

    @abstractmethod
    def _stays(
        self, request: Request, predicted_s: float, instances: Sequence[RollingView], now: float
    ) -> bool:
        """Whether `request` goes to the current instance."""


@mypyc_attr(allow_interpreted_subclasses=True)
class CodeActivation(UncheckedActivation):
    """What the authors' released scheduler does (EcoServe's repository, one macro instance).

    Only the current instance is checked, and if it fails the next one gets the request, unchecked.
    The slack is judged as it was when the window opened, over all running requests, a request's
    clock starting with its first decode step. A request that fails for lack of time stays
    nevertheless while the next instance has too little slack itself, provided that the window's
    prefills are within S_TTFT.

    Parameters
    ----------
    num_instances, ttft_s, tpot_s, slack, rng
        As in `RollingActivation`; the code's statistic is the max.
    """

    def _stays(
        self, request: Request, predicted_s: float, instances: Sequence[RollingView], now: float
    ) -> bool:
        ring, instance = self.rings[self.current], instances[self.current]
        blocks = instance.prompt_blocks(request.prompt_len + 1) + ring.routed_blocks
        if blocks > instance.free_blocks:
            return False
        if not instance.has_unfinished:
            return True
        needed_s = ring.pending_s + predicted_s
        budget_s = self._ttft_s if ring.num_routed else inf
        if min(budget_s, self._slack_s(ring, instance, ring.opened_s)) > needed_s:
            return True
        if needed_s > self._ttft_s:
            return False
        count, after = len(self.rings), self._next
        if not instances[after].has_unfinished:
            return False
        slack_s = self._slack_s(self.rings[after], instances[after], now)
        return slack_s < self._ttft_s * (count - 1) / count

    def _slack_s(self, ring: Ring, instance: RollingView, since_s: float) -> float:
        """Slack of the requests that run (s), seen from `since_s`; infinite if none decodes."""
        for number, (request, key) in list(ring.fresh.items()):
            if not isnan(request.decode_start_s):
                ring.existing[number] = key + request.decode_start_s
                del ring.fresh[number]
        keys = ring.existing
        if not keys:
            return inf
        if instance.num_lanes == 1:
            gained = tokens_gained(instance.decode_step_of(0))
            return self._judge(keys.values()) + self._tpot_s * gained - since_s
        return self._judge(self._credits(keys, ring, instance)) - since_s

    def key_of(self, request: Request) -> float:
        """Key of `request`, which starts to decode, less the time of its first decode step."""
        return self._tpot_s * (request.num_output_tokens - 1 - tokens_gained(request.decode_step))

    def joined(self, index: int, request: Request, lane: int, key: float) -> None:
        """`request` runs: its clock is known once its first decode step has started."""
        ring = self.rings[index]
        ring.lanes[request.request_id] = lane
        ring.fresh[request.request_id] = (request, key)

    def left(self, index: int, request: Request, *, finished: bool) -> None:
        """`request` no longer decodes there; what the window has been given stays counted."""
        ring, number = self.rings[index], request.request_id
        ring.fresh.pop(number, None)
        ring.existing.pop(number, None)
        ring.lanes.pop(number, None)


@mypyc_attr(allow_interpreted_subclasses=True)
class FixedWindows(UncheckedActivation):
    """The ablation of EcoServe's evaluation: the window passes on at fixed intervals.

    It passes with the first request that comes at least `length_s` after it opened; nothing is
    checked and nothing waits.

    Parameters
    ----------
    num_instances, ttft_s, tpot_s, slack, rng
        As in `RollingActivation`.
    length_s : float
        The interval (s), on the grid.
    """

    def __init__(
        self,
        num_instances: int,
        *,
        ttft_s: float,
        tpot_s: float,
        length_s: float,
        slack: str = "mean",
        rng: np.random.Generator | None = None,
    ) -> None:
        super().__init__(num_instances, ttft_s=ttft_s, tpot_s=tpot_s, slack=slack, rng=rng)
        self._length_s = length_s

    def _stays(
        self, request: Request, predicted_s: float, instances: Sequence[RollingView], now: float
    ) -> bool:
        return now - self.rings[self.current].opened_s < self._length_s
