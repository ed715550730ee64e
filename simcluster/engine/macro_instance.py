"""EcoServe's macro instance: instances that take turns in prefilling (PAPERS 1.2 to 1.6)."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from math import inf, nan

import numpy as np

from simcluster.engine.clock import ROUTING, At, Clock
from simcluster.engine.front_end import FrontEnd
from simcluster.engine.instance import InstanceLike
from simcluster.engine.recorder import Recorder
from simcluster.request import Request
from simcluster.routing.rolling_activation import RollingActivation


class MacroInstance(FrontEnd):
    """A ring of instances under rolling activation.

    Every request goes to the instance in its prefill window until a constraint fails there; then
    the next one in the ring opens its window. While a window is open its instance computes tokens
    but does not release them: they reach the users when the window closes, when S_TTFT has passed
    since it opened (it then streams until its next window), or when the instance has nothing left
    to do.

    Parameters
    ----------
    env, instances, on_finish
        As in `FrontEnd`.
    activation : RollingActivation
        The routing decisions.
    ttft_s : float
        S_TTFT (s), on the grid: the longest time that output is held back.
    predict_s : callable
        Predicted prefill time (s) of a prompt of so many tokens.
    hold_output : bool
        Whether windows hold output back.
    recorder : Recorder
        Where the windows go.
    """

    def __init__(
        self,
        env: Clock,
        instances: Sequence[InstanceLike],
        activation: RollingActivation,
        *,
        ttft_s: float,
        predict_s: Callable[[int], float],
        hold_output: bool,
        recorder: Recorder,
        on_finish: Callable[[Request], None],
    ) -> None:
        super().__init__(env, instances, on_finish)
        self._activation = activation
        self._ttft_s = ttft_s
        self._predict_s = predict_s
        self._hold_output = hold_output
        self._windows = recorder.windows
        self._index = {i.instance_id: k for k, i in enumerate(self.instances)}
        self._open: InstanceLike | None = None  # whose window is open
        self._opened_s = 0.0
        self._released_s = nan  # until when its output is held back; NaN if it is not
        self._num_windows = 0

    def _place(self, request: Request, among: Collection[InstanceLike] | None = None) -> bool:
        now = self._env.now
        activation = self._activation
        predicted_s = self._predict_s(request.prompt_len)
        if predicted_s > self._ttft_s:
            # Constraint 1 fails on an empty instance too: it would stay pending for ever.
            self.reject(request)
            return True
        indices = None
        if among is not None:
            # Between its own boundaries an instance only gets worse: time passes, blocks go. (What
            # a preemption frees counts from the next boundary on, one step later.)
            indices = {self._index[instance.instance_id] for instance in among}
        index = activation.scan(request, predicted_s, self.instances, now, indices)
        if index is None:
            return False
        if among is not None and index == activation.current:
            # A full round failed before: the current instance starts a new window. (One that only
            # queued behind such a request has had no round yet.)
            activation.reopen(now)
            self._open_window(index)
        switched = activation.accept(index, request, predicted_s, now)
        if switched or self._open is None:
            self._open_window(index)
        self.instances[index].submit(request)
        return True

    def _head_waits(self, request: Request) -> None:
        # It may pass at any boundary, so none at which it passes may be skipped.
        for instance in self.instances:
            instance.watch(self._stop_at)

    def _none_wait(self) -> None:
        for instance in self.instances:
            instance.watch(None)

    def _stop_at(self, instance: InstanceLike, ends: list[float], first: int) -> int:
        """Steps of the span after which the head of the queue would pass, at the latest all."""
        request = self.pending[0]
        passed = self._activation.first_pass(
            self._index[instance.instance_id],
            request,
            self._predict_s(request.prompt_len),
            instance,
            np.asarray(ends),
            first,
        )
        return len(ends) if passed is None else passed

    def _open_window(self, index: int) -> None:
        """Close the open window, if any, and open that of instance `index`."""
        now = self._env.now
        if self._open is not None:
            self._release(self._open)
            self.close(now)
        self._open = self.instances[index]
        self._opened_s = now
        self._released_s = inf if self._hold_output else nan
        self._num_windows += 1
        if self._hold_output:
            self._open.hold_output = True
            window = self._num_windows
            timer = At(self._env, now + self._ttft_s, ROUTING)
            timer.callbacks.append(lambda _: self._expire(window))

    def close(self, now: float) -> None:
        """Record the open window, if any, as closed `now` (s); what it holds stays held."""
        if self._open is not None:
            self._windows.add((self._open.instance_id, self._opened_s, now, self._released_s))
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

    def prefilled(self, instance: InstanceLike, request: Request) -> None:
        """Book that `request` decodes now."""
        if instance.decodes(request):
            index = self._index[instance.instance_id]
            self._activation.joined(index, request, instance.lane_of(request))

    def preempted(self, instance: InstanceLike, request: Request) -> None:
        """Book that `request` does not decode for now."""
        self._activation.left(self._index[instance.instance_id], request, finished=False)

    def finished(self, instance: InstanceLike, request: Request) -> None:
        """Book that `request` is done; an instance with nothing left to do releases its output."""
        self._activation.left(self._index[instance.instance_id], request, finished=True)
        if not instance.hold_output:
            super().finished(instance, request)
        elif not instance.has_unfinished:
            self._show(instance)

    def _show(self, instance: InstanceLike) -> None:
        """Release what `instance` holds back: for its user, a request ends here."""
        for request in instance.release_output():
            super().finished(instance, request)
