"""Hybrid batches with a token budget: Sarathi-Serve's scheduler."""

from __future__ import annotations

from mypy_extensions import mypyc_attr

from simcluster.request import Request
from simcluster.sched.base import Scheduler
from simcluster.sched.plan import StepPlan, target


@mypyc_attr(allow_interpreted_subclasses=True)
class ChunkedPrefill(Scheduler):
    """Decode everything and fill the rest of the token budget with prefill chunks.

    Per step: one token for each decoding sequence; then prompts already begun, in order; then new
    requests while their blocks and the limit of sequences allow, each ``min(left of the prompt,
    left of the budget)`` tokens. Admission stops at the first request that does not fit. The blocks
    of the whole prompt are taken at admission (Agrawal et al., OSDI 2024, section 4.3).

    Where the configuration says so, prompts that fit wait beside decodes: for more of them, as in
    TensorRT-LLM (``PyExecutor._waiting_requests``: for some steps, or until all that would be
    scheduled has a share of the token budget), or for every n-th of the steps with decodes, as with
    vLLM's ``prefill_schedule_interval``, counted here by the instance alone.
    """

    splits_prompts = True
    delays_prefill = True
    limit_key = "chunk_size"

    # In the class, so that `Scheduler.__init__` need not be written again.
    _waiting_from: int | None = None  # step of the batch at which the present wait began

    def _looks_beyond_head(self) -> bool:
        return self.config.prefill_wait_steps > 0 or self.looks_beyond_head

    def _plan(self, now: float) -> StepPlan | None:
        if self._joining:
            self._admit_joining()
        if self.swapped:
            self._swap_in()
        if self.waiting.head is None and not self._prefilling:
            plan = self._decode_plan(now)
            if plan is not None or self.waiting.head is None:
                return plan
        self._make_room_for_one_step()
        if self.config.delays_prefill and (wait := self._steps_to_wait()):
            plan = self._decode_plan(now)
            if plan is not None:
                plan.max_steps = min(plan.max_steps, wait)
            return plan
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
        if self.config.delays_prefill and batch.size:
            return 1, 0
        full, rest = divmod(target(request) - request.num_computed_tokens - 1, num_tokens)
        if len(chunks) > 1 or full == 0 or self.swap.copied_blocks or self._shares:
            return 1, 0
        alone = self.waiting.head is None and len(self._prefilling) == 1
        steps = limit = full + alone
        if batch.size:
            limit = min(limit, batch.steps_to_next_end())
            limit = batch.steps_with(self.pool.free_blocks, limit)
        return (steps, rest + 1) if alone and limit == steps else (min(limit, full), 0)

    def _steps_to_wait(self) -> int:
        """Decode steps before the next one with prompts; 0 where it is now."""
        config, batch = self.config, self.batch
        if not batch.size:
            self._waiting_from = None
            return 0
        wait = -batch.step % config.prefill_interval
        if config.prefill_wait_steps:
            tokens = self._tokens_at_hand()
            if tokens == 0:
                return wait
            if self._waiting_from is None:
                self._waiting_from = batch.step
            left = self._waiting_from + config.prefill_wait_steps - batch.step
            if tokens + batch.size < config.prefill_wait_tokens and left > 0:
                return max(wait, left)
            if wait == 0:
                self._waiting_from = None
        return wait

    def _tokens_at_hand(self) -> int:
        """Prompt tokens that a step could have now, as far as they decide whether to wait."""
        pool, batch = self.pool, self.batch
        tokens = sum([target(r) - r.num_computed_tokens for r in self._prefilling.values()])
        if self.swapped:
            return tokens
        spare, taken = pool.free_blocks - batch.blocks_needed(1), 0
        room = self.config.max_num_seqs - len(self._running)
        for request in self.waiting:
            _, found, num_new = self._blocks_of(request)
            taken += num_new
            if room == 0 or taken > spare or not pool.can_admit(taken):
                break
            room -= 1
            tokens += target(request) - found * pool.block_size
            if tokens + batch.size >= self.config.prefill_wait_tokens:
                break
        return tokens

    def _budget(self) -> int:
        """Prompt tokens that the next step has room for."""
        return self.config.max_num_batched_tokens - self.batch.size

    def _chunks(self, now: float) -> tuple[tuple[Request, int], ...]:
        chunks: list[tuple[Request, int]] = []
        budget = self._budget()
        for request in self._prefilling.values():
            if budget <= 0:
                return tuple(chunks)
            num_tokens = min(target(request) - request.num_computed_tokens, budget)
            chunks.append((request, num_tokens))
            budget -= num_tokens
        # The decodes of this step take their blocks first.
        waiting, most = self.waiting, self.config.max_num_seqs
        spare = self.pool.free_blocks - self.batch.blocks_needed(1) if waiting.head else 0
        while budget > 0 and (head := waiting.head) and len(self._running) < most:
            if self.swapped:
                break
            num_blocks, found, num_new = self._blocks_of(head)
            if num_new > spare or not self._fits(head, num_new):
                break
            self._admit(head, num_blocks, found, now)
            spare -= num_new
            num_tokens = min(target(head) - head.num_computed_tokens, budget)
            chunks.append((head, num_tokens))
            budget -= num_tokens
        return tuple(chunks)
