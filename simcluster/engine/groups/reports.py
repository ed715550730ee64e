"""When instances report their state to a front end."""

from __future__ import annotations

from collections.abc import Callable
from math import floor

from simcluster.engine.clock import ROUTING, At, Clock
from simcluster.units import on_grid


class ReportClock:
    """Calls for reports at multiples of an interval, while there is anything to report.

    Status comes at such times and not with a delay, so that it is the same at every resolution.

    Parameters
    ----------
    env : Clock
        The run.
    interval_s : float
        Time between reports (s), on the grid; 0 if the state is known as it is.
    report : callable
        Lets the instances report; returns whether anybody will have something to say next time.
    """

    def __init__(self, env: Clock, interval_s: float, report: Callable[[], bool]) -> None:
        self._env = env
        self.interval_s = interval_s
        self._report = report
        self._is_running = False

    def start(self) -> None:
        """See to it that a report is coming, because there will be something to report."""
        if self.interval_s and not self._is_running:
            self._is_running = True
            self._next()

    def _next(self) -> None:
        now, interval_s = self._env.now, self.interval_s
        due_s = on_grid((floor(now / interval_s) + 1) * interval_s)
        At(self._env, max(due_s, now), ROUTING).callbacks.append(lambda _: self._tick())

    def _tick(self) -> None:
        self._is_running = self._report()
        if self._is_running:
            self._next()
