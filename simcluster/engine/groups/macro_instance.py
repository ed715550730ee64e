"""EcoServe's macro instance: instances that take turns in prefilling (EcoServe, section 3)."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from math import inf, nan

import numpy as np

from simcluster.engine.clock import ROUTING, At, Clock
from simcluster.engine.groups.front_end import FrontEnd
from simcluster.engine.groups.reports import ReportClock
from simcluster.engine.instance import InstanceLike
from simcluster.engine.log import Log
from simcluster.request import Request
from simcluster.routing.rolling_activation import (
    PaperActivation,
    Ring,
    RollingActivation,
    RollingView,
)
from simcluster.routing.status import RollingStatus
from simcluster.sched import RequestQueue


class MacroInstance(FrontEnd):
    """A ring of instances under rolling activation.

    Requests go to the instance in its prefill window for as long as the rule lets them; then
    another one opens its window. While a window is open its instance computes tokens but does not
    release them: they reach the users when the window closes, when S_TTFT has passed since it
    opened (it then streams until its next window), or when the instance has nothing left to do.

    Parameters
    ----------
    env, instances, on_finish, pending
        As in `FrontEnd`.
    activation : RollingActivation
        The rule by which windows take turns.
    ttft_s : float
        S_TTFT (s), on the grid: the longest time that output is held back.
    predict_s : callable
        Predicted prefill time (s) of a request.
    hold_output : bool
        Whether windows hold output back.
    status_interval_s : float
        Time between reports of an instance's state (s, on the grid); 0: at every step boundary.
    windows : Log
        Where the windows go.
    macro_id : int
        Its number.

    Attributes
    ----------
    num_unfinished : int
        Requests given to it that are not finished or rejected.
    """

    def __init__(
        self,
        env: Clock,
        instances: Sequence[InstanceLike],
        activation: RollingActivation,
        *,
        ttft_s: float,
        predict_s: Callable[[Request], float],
        hold_output: bool,
        windows: Log,
        on_finish: Callable[[Request], None],
        status_interval_s: float = 0.0,
        macro_id: int = 0,
        pending: RequestQueue | None = None,
    ) -> None:
        super().__init__(env, instances, on_finish, pending=pending)
        self.activation = activation
        self.macro_id = macro_id
        self.num_unfinished = 0
        self._ttft_s = ttft_s
        self._predict_s = predict_s
        self._hold_output = hold_output
        self._windows = windows
        self._clock = ReportClock(env, status_interval_s, self._report)
        self._reports: list[RollingStatus] = []
        self._news: list[Callable[[], None]] = []  # not reported yet
        self._index: dict[int, int] = {}
        self._renumber()
        self._open: InstanceLike | None = None  # whose window is open
        self._opened_s = 0.0
        self._released_s = nan  # until when its output is held back; NaN if it is not
        self._num_windows = 0

    def submit(self, request: Request) -> None:
        """Route `request`, or let it wait behind those that wait already."""
        self.num_unfinished += 1
        self._clock.start()
        super().submit(request)

    def reject(self, request: Request) -> None:
        """Turn `request` away for good; it counts as missed."""
        self.num_unfinished -= 1
        super().reject(request)

    def _place(self, request: Request, among: Collection[InstanceLike] | None = None) -> bool:
        now, activation = self._env.now, self.activation
        predicted_s = self._predict_s(request)
        if activation.never_fits(predicted_s):
            self.reject(request)
            return True
        indices = None
        if among is not None:
            # Between its own boundaries an instance only gets worse: time passes, blocks go. (What
            # a preemption frees counts from the next boundary on, one step later.)
            indices = {self._index[instance.instance_id] for instance in among}
        views: Sequence[RollingView] = self._reports or self.instances
        chosen = activation.scan(request, predicted_s, views, now, indices)
        if chosen is None:
            return False
        index, opens = chosen
        instance = self.instances[index]
        if opens:
            self._open_window(instance)
        num_blocks = instance.prompt_blocks(request.prompt_len + 1)
        activation.accept(index, request, predicted_s, now, opens=opens, num_blocks=num_blocks)
        if self._reports:
            self._reports[index].sent(request)
        instance.submit(request)
        return True

    # --- who waits ------------------------------------------------------------------------------

    def boundary(self, instance: InstanceLike) -> None:
        """Offer the head of the queue again, unless the state is reported by the clock."""
        if not self._clock.interval_s:
            super().boundary(instance)

    def _head_waits(self, request: Request) -> None:
        # It may pass at any boundary, so none at which it passes may be skipped.
        if not self._clock.interval_s:
            for instance in self.instances:
                instance.watch(self._stop_at)

    def _none_wait(self) -> None:
        for instance in self.instances:
            instance.watch(None)

    def _stop_at(self, instance: InstanceLike, ends: list[float], first: int) -> int:
        """Steps of the span after which the head of the queue would pass, at the latest all."""
        request, rule = self.pending.head, self.activation
        if request is None or not isinstance(rule, PaperActivation):
            return len(ends)
        passed = rule.first_pass(
            self._index[instance.instance_id],
            request,
            self._predict_s(request),
            instance,
            np.asarray(ends),
            first,
        )
        return len(ends) if passed is None else passed

    def _report(self) -> bool:
        """All instances report; the head of the queue is offered again."""
        for change in self._news:
            change()
        self._news.clear()
        for report in self._reports:
            report.update()
        self._offer_to_all()
        return self.num_unfinished > 0

    def _offer_to_all(self) -> None:
        """Offer the head of the queue to every instance once more."""
        if self.pending.head is not None:
            if not self._due:
                self._wake.move(self._env.now, ROUTING)
            self._due = list(self.instances)

    # --- windows --------------------------------------------------------------------------------

    def _open_window(self, instance: InstanceLike) -> None:
        """Close the open window, if any, and open that of `instance`."""
        now = self._env.now
        if self._open is not None:
            self._release(self._open)
            self.close(now)
        self._open = instance
        self._opened_s = now
        self._released_s = inf if self._hold_output else nan
        self._num_windows += 1
        if self._hold_output:
            instance.hold_output = True
            window = self._num_windows
            timer = At(self._env, now + self._ttft_s, ROUTING)
            timer.callbacks.append(lambda _: self._expire(window))

    def close(self, now: float) -> None:
        """Record the open window, if any, as closed `now` (s); what it holds stays held."""
        if self._open is not None:
            self._windows.add(
                (self.macro_id, self._open.instance_id, self._opened_s, now, self._released_s)
            )
            self._open = None

    def _expire(self, window: int) -> None:
        """S_TTFT has passed since `window` opened: it streams from now on."""
        if self._open is not None and window == self._num_windows:
            self._release(self._open)

    def _release(self, instance: InstanceLike) -> None:
        if instance.hold_output:
            instance.hold_output = False
            self._show(instance)
            self._released_s = self._env.now

    def _show(self, instance: InstanceLike) -> None:
        """Release what `instance` holds back: for its user, a request ends here."""
        for request in instance.release_output():
            super().finished(instance, request)

    # --- what the instances say -----------------------------------------------------------------

    def prefilled(self, instance: InstanceLike, request: Request) -> None:
        """Book that `request` decodes now."""
        if instance.decodes(request):
            index = self._index[instance.instance_id]
            lane, key = instance.lane_of(request), self.activation.key_of(request)
            if self._clock.interval_s:
                self._news.append(lambda: self.activation.joined(index, request, lane, key))
            else:
                self.activation.joined(index, request, lane, key)

    def preempted(self, instance: InstanceLike, request: Request) -> None:
        """Book that `request` does not decode for now."""
        self._left(instance, request, finished=False)

    def resumed(self, instance: InstanceLike, request: Request) -> None:
        """Book that `request` decodes again."""
        self.prefilled(instance, request)

    def finished(self, instance: InstanceLike, request: Request) -> None:
        """Book that `request` is done; an instance with nothing left to do releases its output."""
        self.num_unfinished -= 1
        self.activation.rings[self._index[instance.instance_id]].num_unfinished -= 1
        self._left(instance, request, finished=True)
        if not instance.hold_output:
            super().finished(instance, request)
        elif not instance.has_unfinished:
            self._show(instance)

    def _left(self, instance: InstanceLike, request: Request, *, finished: bool) -> None:
        index = self._index[instance.instance_id]
        if self._clock.interval_s:
            self._news.append(lambda: self.activation.left(index, request, finished=finished))
        else:
            self.activation.left(index, request, finished=finished)

    # --- the ring changes -----------------------------------------------------------------------

    def add(self, instance: InstanceLike, ring: Ring | None = None) -> None:
        """Take `instance` into the ring, with its books if it comes from another ring."""
        ring = ring or Ring()
        self.instances.append(instance)
        self.activation.add(ring)
        self._renumber()
        self.num_unfinished += ring.num_unfinished
        instance.owner = self
        self._look_again()

    def remove(self, instance: InstanceLike) -> Ring:
        """Let `instance` leave the ring with its books; its window closes.

        Its requests stay with it: the macro instance that takes it becomes its owner.
        """
        for change in self._news:
            change()
        self._news.clear()
        if self._open is instance:
            self._release(instance)
            self.close(self._env.now)
        instance.watch(None)
        index = self._index[instance.instance_id]
        self.instances.pop(index)
        ring = self.activation.remove(index)
        self._renumber()
        self.num_unfinished -= ring.num_unfinished
        self._due = [other for other in self._due if other is not instance]
        return ring

    def take_pending(self, others: Collection[Request]) -> None:
        """Let the requests `others`, which wait elsewhere, wait here, as if they had come here."""
        waiting = [*self.pending.drain(), *others]
        for request in sorted(waiting, key=lambda request: request.request_id):
            self.pending.push(request)
        self.num_unfinished += len(others)
        self._look_again()

    def _look_again(self) -> None:
        """Offer the head of the queue to all, because the ring or the queue has changed."""
        if self.pending.head is not None:
            self._offer_to_all()
            self._head_waits(self.pending.head)

    def _renumber(self) -> None:
        self._index = {i.instance_id: k for k, i in enumerate(self.instances)}
        if self._clock.interval_s:
            self._reports = [RollingStatus(instance) for instance in self.instances]
