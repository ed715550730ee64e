"""The GPU's kernel queue: in order, with collectives that wait for every rank."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any, NamedTuple

import simpy

from simcluster.engine.clock import Clock
from simcluster.engine.log import WriteKernel


class Kernel(NamedTuple):
    """A kernel in the queue: time on the GPU (s), and who waits for what."""

    name: str
    run_s: float
    rendezvous: Rendezvous | None
    done: simpy.Event | None


class Rendezvous:
    """Where the ranks of one collective meet.

    Parameters
    ----------
    env : Clock
        The run.
    num_ranks : int
        Ranks of the tensor-parallel group.
    """

    __slots__ = ("_event", "_missing")

    def __init__(self, env: Clock, num_ranks: int) -> None:
        self._event = simpy.Event(env)
        self._missing = num_ranks

    def arrive(self) -> simpy.Event:
        """Report one rank's arrival; the event happens when the last has come."""
        self._missing -= 1
        if self._missing == 0:
            self._event.succeed()
        return self._event


class GpuQueue:
    """One GPU: a SimPy process that runs the kernels of its queue one after another.

    Parameters
    ----------
    env : Clock
        The run.
    depth : int
        Kernels that fit into the queue; issuing one more blocks.
    write : callable, optional
        Where its kernels are written down.

    Attributes
    ----------
    busy_s : float
        Time in kernels so far (s).
    num_kernels : int
        Kernels run so far.
    """

    def __init__(self, env: Clock, depth: int, write: WriteKernel | None = None) -> None:
        self._env = env
        self._write = write
        self.queue = simpy.Store(env, capacity=depth)
        self.busy_s = 0.0
        self.num_kernels = 0
        self.process = env.process(self._run())

    def _run(self) -> Generator[simpy.Event, Any, None]:
        env, write = self._env, self._write
        while True:
            kernel: Kernel = yield self.queue.get()
            start_s = env.now
            if kernel.rendezvous is not None:
                yield kernel.rendezvous.arrive()
            if kernel.run_s:
                yield env.timeout(kernel.run_s)
            self.busy_s += kernel.run_s
            self.num_kernels += 1
            if write is not None:
                write("gpu", kernel.name, start_s, env.now)
            if kernel.done is not None:
                kernel.done.succeed()
