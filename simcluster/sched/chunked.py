"""Hybrid batches with a token budget: Sarathi-Serve's scheduler."""

from __future__ import annotations

from simcluster.request import Request
from simcluster.sched.base import BatchScheduler, StepPlan, target


class ChunkedPrefill(BatchScheduler):
    """Decode everything and fill the rest of the token budget with prefill chunks.

    Per step: one token for each decoding sequence; then prompts already begun, in order; then new
    requests while their blocks and the limit of sequences allow, each ``min(left of the prompt,
    left of the budget)`` tokens. Admission stops at the first request that does not fit. The blocks
    of the whole prompt are taken at admission (Agrawal et al., OSDI 2024, section 4.3).
    """

    def schedule(self, now: float) -> StepPlan | None:
        """Plan the next steps, starting `now` (s); None when there is nothing to run."""
        plan = self._plan(now)
        if plan is None and self.swapped:
            # Swapping out emptied the batch and made room for the first to come back.
            plan = self._plan(now)
        return plan

    def _plan(self, now: float) -> StepPlan | None:
        if self._joining:
            self._admit_joining()
        if self.swapped:
            self._swap_in()
        if not self.waiting and not self._prefilling:
            plan = self._decode_plan(now)
            if plan is not None or not self.waiting:
                return plan
        self._make_room_for_one_step()
        chunks = self._chunks(now)
        if not chunks:
            return self._decode_plan(now)
        batch = self.batch
        if self._fresh:
            self._start_fresh(now)
        kind = "mixed" if batch.size else "prefill"
        context = batch.context_tokens if batch.size else 0
        steps, last_tokens = self._run_of_chunks(chunks)
        return StepPlan(kind, batch.size, context, chunks, steps, last_tokens)

    def _run_of_chunks(self, chunks: tuple[tuple[Request, int], ...]) -> tuple[int, int]:
        """Say for how many steps these chunks repeat, and the tokens of another one at the end.

        A prompt longer than the budget leaves nothing to others until its last chunk, and the
        decodes stay the same until one ends or the pool runs dry. The last chunk belongs to the run
        if nobody waits for what it leaves of the budget. No run where a step starts with copies, or
        where its end tells others of blocks to share.
        """
        request, num_tokens = chunks[0]
        batch = self.batch
        full, rest = divmod(target(request) - request.num_computed_tokens - 1, num_tokens)
        if len(chunks) > 1 or full == 0 or self.copied_blocks or self._shares:
            return 1, 0
        alone = not self.waiting and len(self._prefilling) == 1
        steps = limit = full + alone
        if batch.size:
            limit = min(limit, batch.steps_to_next_end())
            limit = batch.steps_with(self.pool.free_blocks, limit)
        return (steps, rest + 1) if alone and limit == steps else (min(limit, full), 0)

    def _chunks(self, now: float) -> tuple[tuple[Request, int], ...]:
        chunks: list[tuple[Request, int]] = []
        budget = self.config.max_num_batched_tokens - self.batch.size
        for request in self._prefilling.values():
            if budget <= 0:
                return tuple(chunks)
            num_tokens = min(target(request) - request.num_computed_tokens, budget)
            chunks.append((request, num_tokens))
            budget -= num_tokens
        # The decodes of this step take their blocks first.
        spare = self.pool.free_blocks - self.batch.blocks_needed(1) if self.waiting else 0
        while budget > 0 and self.waiting and len(self._running) < self.config.max_num_seqs:
            if self.swapped:
                break
            request = self.waiting[0]
            tokens = target(request)
            num_blocks = self.pool.blocks_for(tokens)
            found = in_use = 0
            if self._shares:
                found, in_use = self.pool.find(request, tokens)
            num_new = num_blocks - in_use
            if not self.pool.can_admit(num_new) or num_new > spare:
                break
            self._admit(request, num_blocks, found, now)
            spare -= num_new
            num_tokens = min(tokens - request.num_computed_tokens, budget)
            chunks.append((request, num_tokens))
            budget -= num_tokens
        return tuple(chunks)
