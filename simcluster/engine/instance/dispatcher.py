"""The CPU dispatcher: host work of a step, then kernels issued ahead of the GPU.

Used at resolution ``kernel``. One CPU thread per rank issues the kernels of a step, in order and at
their issue cost, into that rank's queue, running ahead of the GPU until the queue is full. What the
closed form of `simcluster.roofline` says about a step must come out here event by event.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Any

import simpy

from simcluster.engine.clock import Clock
from simcluster.engine.instance.gpu import GpuQueue, Kernel, Rendezvous
from simcluster.engine.log import KernelLog, WriteKernel
from simcluster.roofline.schedule import KernelSchedule


class CpuDispatcher:
    """The CPU thread of one rank: a SimPy process that issues kernels to its GPU.

    Parameters
    ----------
    env : Clock
        The run.
    gpu : GpuQueue
        The GPU of this rank.
    write : callable, optional
        Where its work is written down: issues under the names of the kernels, the one issue of a
        captured graph under that of the first.
    """

    def __init__(self, env: Clock, gpu: GpuQueue, write: WriteKernel | None = None) -> None:
        self._env = env
        self._gpu = gpu
        self._write = write
        self._work: simpy.Store = simpy.Store(env)
        self.process = env.process(self._run())

    def submit(
        self, schedule: KernelSchedule, meetings: Sequence[Rendezvous], done: simpy.Event
    ) -> None:
        """Issue the kernels of `schedule`; `done` happens when the GPU has run the last.

        Parameters
        ----------
        schedule : KernelSchedule
            The step.
        meetings : sequence of Rendezvous
            One per collective of the step, in order, shared by the ranks.
        done : simpy.Event
            Succeeds when the last kernel ends.
        """
        self._work.put((schedule, meetings, done))

    def _run(self) -> Generator[simpy.Event, Any, None]:
        env, write = self._env, self._write
        while True:
            schedule, meetings, done = yield self._work.get()
            if schedule.host_before_s:
                yield env.timeout(schedule.host_before_s)
                if write is not None:
                    write("cpu", "host work", env.now - schedule.host_before_s, env.now)
            left = sum([len(run.names) * run.repeat for run in schedule.runs])
            meeting = iter(meetings)
            for run in schedule.runs:
                for _ in range(run.repeat):
                    for name, issue_s, run_s, collective in zip(
                        run.names, run.issue_s, run.run_s, run.collective, strict=True
                    ):
                        if issue_s:
                            yield env.timeout(issue_s)
                            if write is not None:
                                write("cpu", name, env.now - issue_s, env.now)
                        left -= 1
                        kernel = Kernel(
                            name,
                            run_s,
                            next(meeting) if collective else None,
                            done if left == 0 else None,
                        )
                        yield self._gpu.queue.put(kernel)


class RankGroup:
    """The dispatchers and GPUs of a tensor-parallel group.

    Parameters
    ----------
    env : Clock
        The run.
    num_ranks : int
        GPUs of the group.
    queue_depth : int
        Kernels that fit into each GPU's queue.
    log : KernelLog, optional
        Where the kernels are written down.
    instance_id : int
        Whose group it is, for the log.
    first_rank : int
        Number of its first rank in the instance, for the log.
    """

    def __init__(
        self,
        env: Clock,
        num_ranks: int,
        queue_depth: int,
        log: KernelLog | None = None,
        instance_id: int = 0,
        *,
        first_rank: int = 0,
    ) -> None:
        self._env = env
        numbers = range(first_rank, first_rank + num_ranks)
        writers = [log.writer(instance_id, rank) if log else None for rank in numbers]
        self.gpus = [GpuQueue(env, queue_depth, write) for write in writers]
        self.dispatchers = [
            CpuDispatcher(env, gpu, write) for gpu, write in zip(self.gpus, writers, strict=True)
        ]

    def run(self, schedule: KernelSchedule) -> simpy.Event:
        """Start the step on every rank; the event happens when the last GPU has finished it."""
        env = self._env
        num_collectives = sum([sum(run.collective) * run.repeat for run in schedule.runs])
        meetings = [Rendezvous(env, len(self.gpus)) for _ in range(num_collectives)]
        done = [simpy.Event(env) for _ in self.gpus]
        for dispatcher, event in zip(self.dispatchers, done, strict=True):
            dispatcher.submit(schedule, meetings, event)
        return simpy.AllOf(env, done)
