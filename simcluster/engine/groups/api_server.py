"""API servers: CPU processes that every request passes before a scheduler sees it."""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappop, heappush
from math import ceil, inf
from typing import Final

from simcluster.engine.clock import ARRIVAL, At, Clock
from simcluster.units import TICK_S, TICKS_PER_S

_DONE: Final = 1e-9
"""What is left of a job that has ended, at most (s): sums of shares are not exact."""


class ApiServer:
    """One process that works on all its jobs in turns, as an event loop does.

    Of n jobs each gets the n-th part of the CPU (processor sharing), so that of a burst the first
    is through when nearly all are. Streaming is a job that begins when the request is through and
    holds up others; when its tokens leave is not modelled.

    Parameters
    ----------
    env : Clock
        The run.
    request_s, token_s : float
        CPU time of a request, and of a token that is streamed (s), >= 0.
    """

    def __init__(self, env: Clock, request_s: float, token_s: float) -> None:
        self._env = env
        self._request_s, self._token_s = request_s, token_s
        # Jobs by the work that each has got when it ends, counted from the start of the run.
        self._jobs: list[tuple[float, int, float, Callable[[], None] | None]] = []
        self._work_each_s = 0.0
        self._since_s = 0.0
        self._number = 0
        self._next_s = inf

    def take(self, output_len: int, through: Callable[[], None]) -> None:
        """Work on a request of `output_len` tokens; call `through` when it is the scheduler's."""
        self._share_out()
        self._begin(self._request_s, output_len * self._token_s, through)
        self._look_again()

    def _begin(self, work_s: float, later_s: float, through: Callable[[], None] | None) -> None:
        self._number += 1
        heappush(self._jobs, (self._work_each_s + work_s, self._number, later_s, through))

    def _share_out(self) -> None:
        """Give each job its part of the time since it was last done."""
        now = self._env.now
        if self._jobs:
            self._work_each_s += (now - self._since_s) / len(self._jobs)
        self._since_s = now

    def _look_again(self) -> None:
        """Come back when the next job ends, unless that is due before."""
        if not self._jobs:
            return
        left_s = max(0.0, self._jobs[0][0] - self._work_each_s) * len(self._jobs)
        end_s = ceil((self._since_s + left_s) * TICKS_PER_S) * TICK_S
        if end_s < self._next_s:
            self._next_s = end_s
            event = At(self._env, end_s, ARRIVAL)
            event.callbacks.append(lambda _: self._end(end_s))

    def _end(self, due_s: float) -> None:
        """End the jobs that have got their work by now."""
        if due_s != self._next_s:
            return  # an earlier end was found since
        self._next_s = inf
        self._share_out()
        done: list[Callable[[], None]] = []
        while self._jobs and self._jobs[0][0] <= self._work_each_s + _DONE:
            _, _, later_s, through = heappop(self._jobs)
            if through is not None:
                done.append(through)
            if later_s > 0.0:
                self._begin(later_s, 0.0, None)
        self._look_again()
        for through in done:
            through()


class ApiServers:
    """The API servers of a deployment; requests go to one after the other.

    Parameters
    ----------
    env : Clock
        The run.
    count : int
        Processes, >= 1.
    request_s, token_s : float
        As in `ApiServer`.
    """

    def __init__(self, env: Clock, count: int, request_s: float, token_s: float) -> None:
        self._servers = [ApiServer(env, request_s, token_s) for _ in range(count)]
        self._taken = 0

    def take(self, output_len: int, through: Callable[[], None]) -> None:
        """Let the next server work on a request, as in `ApiServer.take`."""
        server = self._servers[self._taken % len(self._servers)]
        self._taken += 1
        server.take(output_len, through)
