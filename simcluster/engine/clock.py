"""Events at absolute times on the grid, and the order of what happens at the same time.

SimPy runs events of equal time by priority, then by creation. Everything that is scheduled here
states its priority, so the order of ties is a rule and not an accident:

faults, then step ends (by instance), transfer ends, arrivals (by id), routing, scheduling (by
instance), and steps that several schedulers take together.

SimPy's own events (process starts, ``succeed``) have the priorities 0 and 1 and come first.
"""

from __future__ import annotations

from heapq import heappop, heappush
from math import inf
from operator import attrgetter
from typing import Any, Final

import simpy

_ROOM: Final = 1 << 20
FAULT: Final = 1 * _ROOM
STEP_END: Final = 2 * _ROOM
TRANSFER_END: Final = 3 * _ROOM
ARRIVAL: Final = 4 * _ROOM
ROUTING: Final = 5 * _ROOM
SCHEDULING: Final = 6 * _ROOM
LOCK_STEP: Final = 7 * _ROOM


class Clock(simpy.Environment):
    """A SimPy environment that counts its events; `At` gives it such at absolute times."""

    def peek(self) -> float:
        """Return when the next event happens (s); infinity if there is none."""
        return float(self._queue[0][0]) if self._queue else inf

    def run_until(self, event: simpy.Event) -> None:
        """Let time pass until `event` has happened, as ``run(until=event)`` does, step by step.

        Raises
        ------
        RuntimeError
            If nothing is left to happen before.
        Exception
            What a process has raised.
        """
        queue = self._queue
        waited_for: Any = event  # SimPy's types do not say that what has happened calls nobody
        while waited_for.callbacks is not None:
            if not queue:
                raise RuntimeError(f"nothing is left to happen, and {event} has not")
            happened: Any
            self._now, _, _, happened = heappop(queue)
            callbacks = happened.callbacks
            happened.callbacks = None
            for callback in callbacks:
                callback(happened)
            if not happened._ok and not hasattr(happened, "_defused"):
                raise happened._value

    @property
    def num_events(self) -> int:
        """Events scheduled so far."""
        self._events_read = getattr(self, "_events_read", -1) + 1
        return next(self._eid) - self._events_read


# The present time is what everything here asks for most; SimPy's own property is a function.
Clock.now = property(attrgetter("_now"))  # type: ignore[method-assign, assignment]


class At(simpy.Event):
    """An event that happens at an absolute time, with a stated place among ties.

    Parameters
    ----------
    env : Clock
        The run.
    time_s : float
        When (s), on the grid and not before ``env.now``.
    priority : int
        One of the constants of this module, plus the index of the instance where several of its
        kind may tie.
    value : object
        What a process that waits for the event receives.
    """

    def __init__(self, env: Clock, time_s: float, priority: int, value: Any = None) -> None:
        self.env = env
        self.callbacks = []
        self._ok = True
        self._value = value
        # As `simpy.Environment.schedule`, which takes a delay and adds it to the present time.
        entry = (time_s, priority, next(env._eid), self)
        heappush(env._queue, entry)  # type: ignore[misc]  # SimPy's priorities are a type of their own


class Wake:
    """What one process waits for, movable while it waits.

    A process yields ``wake.at(...)`` or ``wake.sleep()``; somebody else may move it to another time
    with ``wake.move(...)``. The event moved away from still happens, with nobody listening.
    """

    __slots__ = ("_env", "_event")

    def __init__(self, env: Clock) -> None:
        self._env = env
        self._event = simpy.Event(env)

    def at(self, time_s: float, priority: int) -> simpy.Event:
        """Return an event at `time_s` (s) to wait for."""
        self._event = At(self._env, time_s, priority)
        return self._event

    def sleep(self) -> simpy.Event:
        """Return an event that only `move` makes happen."""
        self._event = simpy.Event(self._env)
        return self._event

    @property
    def event(self) -> simpy.Event:
        """What to wait for at present."""
        return self._event

    def move(self, time_s: float, priority: int) -> None:
        """Let the waiting process go on at `time_s` (s) instead."""
        self._wait_for(At(self._env, time_s, priority))

    def hold(self) -> None:
        """Let the waiting process wait for another `move`."""
        self._wait_for(simpy.Event(self._env))

    def _wait_for(self, event: simpy.Event) -> None:
        if self._event.callbacks:
            event.callbacks, self._event.callbacks = self._event.callbacks, []
        self._event = event
