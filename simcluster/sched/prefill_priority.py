"""Separate batches, prefill first: vLLM's V0 scheduler."""

from __future__ import annotations

from simcluster.request import Request
from simcluster.sched.base import BatchScheduler, StepPlan, target


class PrefillPriority(BatchScheduler):
    """Prefill whatever can be admitted, else decode everything.

    Per step: first come, first served over the waiting requests; admit while the KV blocks of the
    prompt fit above the watermark, the step's tokens stay within ``max_num_batched_tokens`` and the
    running requests within ``max_num_seqs``. If any was admitted the step is a prefill of those
    alone, else all running requests decode; where a decode finds no block, the newest request is
    preempted. As vLLM 0.7.3 does without chunked prefill (``Scheduler._schedule_default``; Kwon et
    al., SOSP 2023, section 4.5, for admission and preemption).
    """

    def schedule(self, now: float) -> StepPlan | None:
        """Plan the next steps, starting `now` (s); None when there is nothing to run."""
        plan = self._plan(now)
        if plan is None and (self.waiting or self._joining or self.swapped):
            # Preempting emptied the batch and made room for others.
            plan = self._plan(now)
        return plan

    def _plan(self, now: float) -> StepPlan | None:
        if self._joining:
            self._admit_joining()
        if self.swapped:
            self._swap_in()
        if self.waiting and not self.swapped:
            chunks = self._prefill_chunks(now)
            if chunks:
                return StepPlan("prefill", 0, 0, chunks, 1)
        return self._decode_plan(now)

    def _prefill_chunks(self, now: float) -> tuple[tuple[Request, int], ...]:
        chunks: list[tuple[Request, int]] = []
        budget = self.config.max_num_batched_tokens
        while self.waiting and len(self._running) < self.config.max_num_seqs:
            request = self.waiting[0]
            tokens = target(request)
            num_blocks = self.pool.blocks_for(tokens)
            found = in_use = 0
            if self._shares:
                found, in_use = self.pool.find(request, tokens)
                tokens -= found * self.pool.block_size
            # A recomputed request can exceed the budget that its prompt met: it runs alone.
            if (tokens > budget and chunks) or not self.pool.can_admit(num_blocks - in_use):
                break
            self._admit(request, num_blocks, found, now)
            chunks.append((request, tokens))
            budget -= tokens
            if budget <= 0:
                break
        return tuple(chunks)
