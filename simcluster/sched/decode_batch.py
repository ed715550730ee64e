"""The decoding sequences of an instance, counted together."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from itertools import accumulate

import numpy as np

from simcluster.request import Request, steps_to_gain, tokens_gained
from simcluster.units import IntArray


class DecodeBatch:
    """The decoding sequences of an instance, with no work per sequence per step.

    In a decode step every sequence gains one token. So it is enough to keep sums, a heap of the
    steps at which sequences end, and how many sequences fill a block at each remainder of the step
    count.

    Attributes
    ----------
    step : int
        Decode steps done since the start.
    size : int
        Sequences in the batch.
    context_tokens : int
        Tokens the sequences attend to in the next step, summed: those in the cache and the new one.
    """

    __slots__ = (
        "_block_size",
        "_ends",
        "_fills",
        "_members",
        "_order",
        "context_tokens",
        "size",
        "step",
    )

    def __init__(self, block_size: int) -> None:
        self.step = 0
        self.size = 0
        self.context_tokens = 0
        self._block_size = block_size
        self._members: dict[int, Request] = {}
        self._ends: list[tuple[int, int, Request]] = []
        self._fills = [0] * block_size
        self._order = 0

    def __contains__(self, request: Request) -> bool:
        return request.request_id in self._members

    def __iter__(self) -> Iterator[Request]:
        return iter(self._members.values())

    def add(self, request: Request) -> None:
        """Let `request` decode from the next step on; its counters must be those of now."""
        request.decode_step = self.step
        computed = request.num_computed_tokens
        self._members[request.request_id] = request
        self._fills[(computed - self.step) % self._block_size] += 1
        self.size += 1
        self.context_tokens += computed + 1
        end = self.step + steps_to_gain(request.output_len - request.num_output_tokens)
        self._order += 1
        heapq.heappush(self._ends, (end, self._order, request))

    def remove(self, request: Request) -> None:
        """Take `request` out and bring its counters up to now."""
        del self._members[request.request_id]
        done = tokens_gained(self.step - request.decode_step)
        request.num_computed_tokens += done
        request.num_output_tokens += done
        self._fills[(request.num_computed_tokens - self.step) % self._block_size] -= 1
        self.size -= 1
        self.context_tokens -= request.num_computed_tokens + 1

    def tokens_of(self, request: Request) -> int:
        """Tokens of `request` in the cache now."""
        return request.num_computed_tokens + tokens_gained(self.step - request.decode_step)

    def window_tokens(self, num_steps: int, window: int) -> IntArray:
        """Sums of the contexts, each capped at `window` tokens, of the next steps.

        The one thing here that costs work per sequence and step, for models with a window only.

        Returns
        -------
        int array, shape ``(num_steps,)``
            Tokens attended to in a layer with a sliding window.
        """
        contexts = np.fromiter((self.tokens_of(r) + 1 for r in self), np.int64, self.size)
        grown = contexts[:, None] + np.arange(num_steps)
        sums: IntArray = np.minimum(grown, window).sum(axis=0, dtype=np.int64)
        return sums

    def steps_to_next_end(self) -> int:
        """Steps until the first sequence ends, >= 1; the batch must not be empty."""
        ends = self._ends
        while True:
            end, _, request = ends[0]
            # A sequence that left early (preempted) leaves its entry behind.
            if (
                request.request_id in self._members
                and end == request.decode_step + request.output_len - request.num_output_tokens
            ):
                return end - self.step
            heapq.heappop(ends)

    def blocks_needed(self, num_steps: int) -> int:
        """New blocks that the next `num_steps` steps take."""
        cycles, rest = divmod(num_steps, self._block_size)
        needed = cycles * self.size
        first = self.step
        fills, size = self._fills, self._block_size
        for step in range(first, first + rest):
            needed += fills[-step % size]
        return needed

    def blocks_by_step(self, num_steps: int) -> list[int]:
        """New blocks that the next 1, 2, .. `num_steps` steps take."""
        fills, size, first = self._fills, self._block_size, self.step
        return list(accumulate(fills[-s % size] for s in range(first, first + num_steps)))

    def steps_with(self, free_blocks: int, limit: int) -> int:
        """Most steps, at most `limit`, whose new blocks fit into `free_blocks`."""
        if (limit // self._block_size + 1) * self.size <= free_blocks:
            return limit
        cycles = free_blocks // self.size
        steps = cycles * self._block_size
        left = free_blocks - cycles * self.size
        fills, size = self._fills, self._block_size
        while steps < limit:
            left -= fills[-(self.step + steps) % size]
            if left < 0:
                return steps
            steps += 1
        return limit

    def advance(self, num_steps: int) -> list[Request]:
        """Do `num_steps` steps; return the sequences that end with the last, taken out."""
        self.step += num_steps
        self.context_tokens += num_steps * self.size
        finished: list[Request] = []
        while self.size and self.steps_to_next_end() == 0:
            request = heapq.heappop(self._ends)[2]
            self.remove(request)
            finished.append(request)
        if not self.size:
            self._ends.clear()
        return finished
