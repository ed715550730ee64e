"""A scheduler: one prompt, one decode step, in turn."""

from __future__ import annotations

from typing import Any

from simcluster.request import Request
from simcluster.sched import PrefillPriority, StepPlan, target


class Alternating(PrefillPriority):
    """Prefill one prompt, then let the running requests decode a token, then the next prompt.

    Prefill-first computes all prompts that fit before it decodes. Here a running request waits for
    one prompt at most.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._prefilled = False  # by the step before

    def _plan(self, now: float) -> StepPlan | None:
        plan = super()._plan(now)
        if plan is not None and self._prefilled and self.waiting.head is not None:
            plan.max_steps = 1  # the next step is a prompt's
        self._prefilled = plan is not None and plan.kind == "prefill"
        return plan

    def _prefill_chunks(self, now: float) -> tuple[tuple[Request, int], ...]:
        head = self.waiting.head
        full = len(self._running) >= self.config.max_num_seqs
        if head is None or full or (self._prefilled and self.batch.size):
            return ()
        num_blocks, num_found, num_new = self._blocks_of(head)
        if not self.pool.can_admit(num_new):
            return ()
        self._admit(head, num_blocks, num_found, now)
        return ((head, target(head) - head.num_computed_tokens),)
