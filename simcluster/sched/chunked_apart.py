"""Chunks of prompts in steps of their own, before decodes: SGLang's scheduler."""

from __future__ import annotations

from mypy_extensions import mypyc_attr

from simcluster.sched.chunked import ChunkedPrefill
from simcluster.sched.plan import StepPlan


@mypyc_attr(allow_interpreted_subclasses=True)
class ChunkedApart(ChunkedPrefill):
    """Chunks of prompts while there are some, else decode everything.

    Per step: prompts already begun, in order, then new requests while their blocks and the limit of
    sequences allow, up to the token budget; the last prompt is cut there. A step with prompts has
    no decodes. So SGLang does without ``--enable-mixed-chunk`` (``Scheduler
    .get_next_batch_to_run`` and ``PrefillAdder``, python/sglang/srt/managers, 0.5).

    Not modelled: SGLang admits by what it expects running requests to generate yet (its
    ``new_token_ratio``), here the blocks of prompts count, and requests are preempted where a
    decode finds none (its ``retract_decode``).
    """

    delays_prefill = False

    def _plan(self, now: float) -> StepPlan | None:
        if self._joining:
            self._admit_joining()
        if self.swapped:
            self._swap_in()
        if self.waiting.head is not None or self._prefilling:
            chunks = self._chunks(now)
            if chunks:
                return StepPlan("prefill", 0, 0, chunks, 1)
        return self._decode_plan(now)

    def _budget(self) -> int:
        return self.config.max_num_batched_tokens
