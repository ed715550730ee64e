"""Instances that come and go during a run."""

from __future__ import annotations

from collections.abc import Callable
from math import ceil, inf
from typing import Final, Protocol

from simcluster.engine.clock import ROUTING, At
from simcluster.engine.groups.cluster import Cluster, ScaledGroup
from simcluster.engine.groups.overall import OverallScheduler
from simcluster.engine.instance import InstanceLike
from simcluster.engine.shape import InstanceShape
from simcluster.errors import InvariantError
from simcluster.units import MAX_TIME_S

DISK_BYTES_PER_S: Final = 67.5e9 / 180.0
"""Weights that an engine brings up from a local disk in a second (bytes/s), everything included:
about 3 minutes for CodeLlama2-34B (67.5 GB in 16 bits) on an L20 node (EcoServe, section 3.5.2)."""


class Group(Protocol):
    """Instances in service that an autoscaler adds to and takes from."""

    @property
    def instances(self) -> list[InstanceLike]:
        """The instances in service."""

    def add(self, instance: InstanceLike) -> None:
        """Put `instance` into service."""

    def drain(self) -> InstanceLike:
        """Choose an instance, give it no more requests, and return it."""

    def is_drained(self, instance: InstanceLike) -> bool:
        """Whether an instance that was drained has finished everything."""


Signal = Callable[[float], int]
"""From the time (s) to 1 (more instances are wanted), -1 (fewer) or 0."""


class Mitosis:
    """EcoServe's triggers (section 3.5, equations 1 and 2).

    Up where the running mean of the TTFT exceeds S_TTFT, or the share `up_at` of it: requests that
    no instance can take wait.
    Down where every macro instance of n instances has a mean saved TPOT above S_TTFT (n + 1) / n:
    one instance fewer would still have S_TTFT of slack.

    Parameters
    ----------
    scheduler : OverallScheduler
        What is watched.
    ttft_s : float
        S_TTFT (s).
    up_at : float
        Share of S_TTFT; the paper's is 1.
    scale_down : bool
        Whether fewer are ever wanted.
    """

    def __init__(
        self,
        scheduler: OverallScheduler,
        ttft_s: float,
        *,
        up_at: float = 1.0,
        scale_down: bool = True,
    ) -> None:
        self._scheduler = scheduler
        self._ttft_s = ttft_s
        self._up_at = up_at
        self._scale_down = scale_down

    def __call__(self, now: float) -> int:
        """Return what is wanted at `now` (s)."""
        if self._scheduler.mean_ttft_s(now) > self._up_at * self._ttft_s:
            return 1
        if not self._scale_down:
            return 0
        saved = self._scheduler.saved_tpot_s(now)
        # Nobody decodes, nothing waits: idle is the ample case.
        idle = not any(macro.num_unfinished for macro in self._scheduler.macros)
        ample = all(mean_s > self._ttft_s * (n + 1) / n for mean_s, n in saved)
        return -1 if ample or idle else 0


class Threshold:
    """Up and down by the unfinished requests per instance, as plain autoscalers do.

    Parameters
    ----------
    group : Group
        What is watched.
    waiting : callable
        Requests that wait in front of it.
    up, down : float
        More instances are wanted above `up` requests per instance, fewer below `down`.
    """

    def __init__(self, group: Group, waiting: Callable[[], int], up: float, down: float) -> None:
        self._group = group
        self._waiting = waiting
        self._up = up
        self._down = down

    def __call__(self, now: float) -> int:
        """Return what is wanted at `now` (s)."""
        instances = self._group.instances
        load = sum(instance.num_unfinished for instance in instances) + self._waiting()
        if load > self._up * len(instances):
            return 1
        return -1 if load < self._down * len(instances) else 0


class Autoscaler:
    """Looks at a group every so often and starts or drains one instance.

    An instance holds its GPUs from the start of its start-up to the first look after it has
    finished its last request.

    Parameters
    ----------
    cluster : Cluster
        Where instances are placed.
    shape : InstanceShape
        What they are made of.
    role : str
        Their role.
    group : Group
        Where they serve.
    signal : callable
        What is wanted.
    least, most : int
        Bounds of the instances in service and starting up.
    interval_s, cooldown_s, start_up_s : float
        Time between looks, shortest time between two changes, start-up of an instance (s), on the
        grid.
    """

    def __init__(
        self,
        cluster: Cluster,
        shape: InstanceShape,
        role: str,
        group: Group,
        signal: Signal,
        *,
        least: int,
        most: int,
        interval_s: float,
        cooldown_s: float,
        start_up_s: float,
    ) -> None:
        self._cluster = cluster
        self._env = cluster.env
        self._shape = shape
        self._role = role
        self._group = group
        self._signal = signal
        self._least = least
        self._most = most
        self._interval_s = interval_s
        self._cooldown_s = cooldown_s
        self._start_up_s = start_up_s
        self._changed_s = -inf
        self._starting = 0
        self._draining: list[InstanceLike] = []
        cluster.scaled.append(self._limits())
        self._next_look()

    def _limits(self) -> ScaledGroup:
        """Return the instances that there are and may be, and the time between the two."""
        first = len(self._group.instances)
        room = len(self._cluster.placed) + self._cluster.num_that_fit(self._shape)
        most = max(first, min(self._most, room))
        ramp_s = 0.0
        if most > first:
            looks = max(1, ceil(self._cooldown_s / self._interval_s))  # from a change to the next
            ramp_s = (1 + (most - first - 1) * looks) * self._interval_s + self._start_up_s
        return ScaledGroup(self._role, first, most, ramp_s)

    def _next_look(self) -> None:
        look = At(self._env, self._env.now + self._interval_s, ROUTING + 1)
        look.callbacks.append(lambda _: self._look())

    def _look(self) -> None:
        now = self._env.now
        for instance in [i for i in self._draining if self._group.is_drained(i)]:
            self._draining.remove(instance)
            self._cluster.remove(instance)
            self._write("freed", instance)
        wanted = self._signal(now)
        if now - self._changed_s >= self._cooldown_s:
            count = len(self._group.instances) + self._starting
            if wanted > 0 and count < self._most and self._has_room():
                self._changed_s = now
                self._start()
            elif wanted < 0 and not self._starting and count > self._least:
                self._changed_s = now
                self._drain()
        if self._env.peek() >= MAX_TIME_S:  # the end of the time grid stands there in any case
            # Requests are left, for the run has not ended; none arrives, no instance does anything.
            raise InvariantError("requests are left and nothing happens but looks at the load")
        self._next_look()

    def _has_room(self) -> bool:
        return self._cluster.num_that_fit(self._shape) > 0

    def _start(self) -> None:
        instance = self._cluster.place(self._shape, self._role)
        self._write("start", instance)
        if not self._start_up_s:
            self._join(instance)
            return
        self._starting += 1
        up = At(self._env, self._env.now + self._start_up_s, ROUTING + 1)
        up.callbacks.append(lambda _: self._started(instance))

    def _started(self, instance: InstanceLike) -> None:
        self._starting -= 1
        self._join(instance)

    def _join(self, instance: InstanceLike) -> None:
        self._group.add(instance)
        if not isinstance(self._group, OverallScheduler):  # which writes it down itself
            self._write("join", instance)

    def _drain(self) -> None:
        instance = self._group.drain()
        self._draining.append(instance)
        if not isinstance(self._group, OverallScheduler):
            self._write("drain", instance)

    def _write(self, event: str, instance: InstanceLike) -> None:
        count = len(self._group.instances)
        self._cluster.recorder.scaling.add(
            (self._env.now, event, instance.instance_id, -1, count, count)
        )
