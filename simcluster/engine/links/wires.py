"""Collectives of a tensor-parallel group on wires that KV transfers use too."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from simcluster.engine.clock import Clock
from simcluster.engine.links.link import Link, LinkNetwork
from simcluster.roofline.base import StepShape, StepTime
from simcluster.sched import StepPlan

SHARES: Final = 64
"""Parts of a wire, the smallest difference between two shares."""


class SharedWires:
    """What KV transfers and the collectives of one instance take from each other.

    The share of the wires that collectives get is frozen when a step starts: what the flows leave,
    or an equal share if that is more, rounded down to a 64th. A change counts for the steps that
    start after it, not for one that starts at the very same time, in either order.
    Towards the flows the group is a fluid demand, its bytes per step over the time of the step,
    constant until its batch changes.

    Parameters
    ----------
    env : Clock
        The run.
    network : LinkNetwork
        Where the flows are.
    wires : sequence of Link
        Links of the group's GPUs, out and in.
    bytes_per_token : float
        What all its GPUs together send in the collectives of a step, per token of the step (bytes).
    step_time_at : callable
        From a number of 64ths of the wires, which collectives get: the step times.
    cut : callable
        Called when the share changes: a run of steps must end before the first that starts later.

    Attributes
    ----------
    share_in_use : float
        Share of the wires that the collectives of the step that began last get, 0 to 1.
    is_stale : bool
        The share of the step that began last changed at its very start: the next has another.
    """

    def __init__(
        self,
        env: Clock,
        network: LinkNetwork,
        wires: Sequence[Link],
        bytes_per_token: float,
        step_time_at: Callable[[int], StepTime],
        cut: Callable[[], None],
    ) -> None:
        self._env = env
        self._network = network
        self._wires = wires
        self._bytes_per_token = bytes_per_token
        self._step_time_at = step_time_at
        self._cut = cut
        self._share = SHARES
        self._share_before = SHARES  # of steps that start no later than the change
        self._changed_s = -1.0
        self.is_stale = False
        self.share_in_use = 1.0
        self._batch: tuple[int, tuple[int, ...]] | None = None
        for wire in wires:
            wire.carry_collectives()
        network.watch(wires, self.flows_changed)

    def begin(self, plan: StepPlan, shape: StepShape) -> StepTime:
        """Return the step times of `plan`, of which a step of `shape` starts now."""
        share = self._share if self._env.now > self._changed_s else self._share_before
        self.is_stale = share != self._share
        self.share_in_use = share / SHARES
        step_time = self._step_time_at(share)
        batch = plan.num_decodes, tuple(tokens for _, tokens in plan.chunks)
        if batch != self._batch:
            self._batch = batch
            num_tokens = plan.num_decodes + plan.prefill_tokens
            step_s = step_time.step_s(shape)
            self._network.demand(self._wires, num_tokens * self._bytes_per_token / step_s)
        return step_time

    def idle(self) -> None:
        """Nothing runs: the flows get all."""
        if self._batch is not None:
            self._batch = None
            self._network.demand(self._wires, 0.0)

    def flows_changed(self) -> None:
        """See what the flows leave now."""
        left = min(wire.left_for_collectives / wire.bandwidth for wire in self._wires)
        share = max(1, int(left * SHARES + 1e-9))
        if share != self._share:
            now = self._env.now
            if now > self._changed_s:
                self._share_before = self._share
                self._changed_s = now
            self._share = share
            self._cut()
