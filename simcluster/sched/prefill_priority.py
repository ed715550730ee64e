"""Separate batches, prefill first: vLLM's V0 scheduler."""

from __future__ import annotations

from mypy_extensions import mypyc_attr

from simcluster.request import Request
from simcluster.sched.base import Scheduler
from simcluster.sched.plan import StepPlan, target


@mypyc_attr(allow_interpreted_subclasses=True)
class PrefillPriority(Scheduler):
    """Prefill whatever can be admitted, else decode everything.

    Per step: take waiting requests in the order of the queue while the KV blocks of the prompt fit
    above the watermark, the step's tokens stay within ``max_num_batched_tokens`` and the running
    requests within ``max_num_seqs``. If any was admitted the step is a prefill of those alone, else
    all running requests decode; where a decode finds no block, the newest request is preempted. As
    vLLM 0.7.3 does without chunked prefill (``Scheduler._schedule_default``; Kwon et
    al., SOSP 2023, section 4.5, for admission and preemption).
    """

    def _plan(self, now: float) -> StepPlan | None:
        if self._joining:
            self._admit_joining()
        if self.swapped:
            self._swap_in()
        if self.waiting.head is not None and not self.swapped:
            chunks = self._prefill_chunks(now)
            if chunks:
                return StepPlan("prefill", 0, 0, chunks, 1)
        return self._decode_plan(now)

    def _prefill_chunks(self, now: float) -> tuple[tuple[Request, int], ...]:
        chunks: list[tuple[Request, int]] = []
        budget = self.config.max_num_batched_tokens
        waiting = self.waiting
        while (head := waiting.head) and len(self._running) < self.config.max_num_seqs:
            num_blocks, found, num_new = self._blocks_of(head)
            tokens = target(head) - found * self.pool.block_size
            # A recomputed request can exceed the budget that its prompt met: it runs alone.
            if (tokens > budget and chunks) or not self._fits(head, num_new):
                break
            self._admit(head, num_blocks, found, now)
            chunks.append((head, tokens))
            budget -= tokens
            if budget <= 0:
                break
        return tuple(chunks)
