"""The decoding sequences of an instance, counted together."""

from __future__ import annotations

import heapq
from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterator
from itertools import accumulate

import numpy as np

from simcluster.catalog.layers import Reach
from simcluster.kvcache import BlockLayout
from simcluster.request import Request, steps_to_gain, tokens_gained
from simcluster.sched.cycle import Cycle
from simcluster.units import IntArray


class DecodeBatch:
    """The decoding sequences of an instance, with no work per sequence per step.

    In a decode step every sequence gains one token. So it is enough to keep sums, a heap of the
    steps at which sequences end, and the remainders of the step count at which sequences fill a
    block.

    Parameters
    ----------
    layout : BlockLayout
        KV blocks of a sequence.
    reach : Reach, optional
        Window, chunk or top-k of the model's layers.

    Attributes
    ----------
    step : int
        Decode steps done since the start.
    size : int
        Sequences in the batch.
    context_tokens : int
        Tokens the sequences attend to in the next step, summed: those in the cache and the new one.
    most_blocks_per_step : int
        Blocks that a sequence takes in a step in which it begins one of every kind of layers.
    """

    __slots__ = (
        "_block_size",
        "_ends",
        "_fills",
        "_full",
        "_limited",
        "_members",
        "_order",
        "_reached",
        "context_tokens",
        "most_blocks_per_step",
        "size",
        "step",
    )

    def __init__(self, layout: BlockLayout, reach: Reach | None = None) -> None:
        self.step = 0
        self.size = 0
        self.context_tokens = 0
        self._block_size = layout.block_size
        self._full = layout.full
        self._members: dict[int, Request] = {}
        self._ends: list[tuple[int, int, Request]] = []
        self._fills = Cycle(layout.block_size)  # steps at which a sequence begins another block
        self._limited = [_Limited(layout.block_size, *group[:2]) for group in layout.limited]
        self.most_blocks_per_step = layout.full + sum([group.weight for group in layout.limited])
        self._reached = None if reach is None else _Reached(reach)
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
        self._fills.counts[(self.step - computed) % self._block_size] += 1
        for group in self._limited:
            group.add(self.step, computed)
        if self._reached is not None:
            self._reached.add(self.step, computed + 1)
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
        self._fills.counts[(self.step - request.num_computed_tokens) % self._block_size] -= 1
        for group in self._limited:
            group.remove(self.step, request.num_computed_tokens)
        if self._reached is not None:
            self._reached.remove(self.step, request.num_computed_tokens + 1)
        self.size -= 1
        self.context_tokens -= request.num_computed_tokens + 1

    def tokens_of(self, request: Request) -> int:
        """Tokens of `request` in the cache now."""
        return request.num_computed_tokens + tokens_gained(self.step - request.decode_step)

    def window_tokens(self, num_steps: int) -> IntArray:
        """Sums of the contexts of the next steps, each as far as it reaches.

        Returns
        -------
        int array, shape ``(num_steps,)``
            Tokens attended to in a layer with a window, a chunk or a top-k.
        """
        assert self._reached is not None, "a model without windows needs no such sums"
        return self._reached.sums(self.step, num_steps)

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
        needed = self._full * self._fills.count(self.step, num_steps)
        for group in self._limited:
            needed += group.blocks_needed(self.step, num_steps)
        return needed

    def blocks_by_step(self, num_steps: int) -> list[int]:
        """New blocks that the next 1, 2, .. `num_steps` steps take."""
        if self._limited:
            return [self.blocks_needed(steps) for steps in range(1, num_steps + 1)]
        return [
            self._full * count for count in accumulate(self._fills.by_step(self.step, num_steps))
        ]

    def steps_with(self, free_blocks: int, limit: int) -> int:
        """Most steps, at most `limit`, whose new blocks fit into `free_blocks`."""
        most = self.size * self.most_blocks_per_step
        if (limit // self._block_size + 1) * most <= free_blocks:
            return limit
        if not self._limited:
            return min(limit, self._fills.until(self.step, free_blocks // self._full))
        within = range(1, limit + 1)
        return bisect_right(within, free_blocks, key=self.blocks_needed)

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


class _Limited:
    """Blocks that sequences still take for layers that keep a bounded number of them.

    A sequence takes a block whenever its tokens fill one, up to the step at which it would exceed
    the limit; from then on none.
    """

    __slots__ = ("_block_size", "_fills", "_most", "_stops", "weight")

    def __init__(self, block_size: int, weight: int, most: int) -> None:
        self.weight = weight
        self._block_size = block_size
        self._most = most
        self._fills = Cycle(block_size)  # of the sequences below the limit
        self._stops: list[int] = []  # the steps at which they would exceed it, in order

    def add(self, step: int, num_tokens: int) -> None:
        """Let a sequence with `num_tokens` in the cache decode from `step` on."""
        stop = step - num_tokens + self._most * self._block_size
        if stop > step:
            self._fills.add(stop)
            insort(self._stops, stop)

    def remove(self, step: int, num_tokens: int) -> None:
        """Take a sequence out that has `num_tokens` in the cache at `step`."""
        self._drop_until(step)
        stop = step - num_tokens + self._most * self._block_size
        if stop > step:
            self._fills.remove(stop)
            del self._stops[bisect_left(self._stops, stop)]

    def blocks_needed(self, step: int, num_steps: int) -> int:
        """New blocks of the pool that `num_steps` steps from `step` on take."""
        self._drop_until(step)
        stops, end = self._stops, step + num_steps
        taken = self._fills.count(step, num_steps)
        for stop in stops[: bisect_left(stops, end)]:
            taken -= (end - 1 - stop) // self._block_size + 1
        return self.weight * taken

    def _drop_until(self, step: int) -> None:
        """Forget the sequences whose limit is reached before or at `step`."""
        done = bisect_right(self._stops, step)
        for stop in self._stops[:done]:
            self._fills.remove(stop)
        del self._stops[:done]


class _Reached:
    """Contexts as far as they reach, summed, with no work per sequence per step."""

    __slots__ = ("_chunks", "_reach", "_size", "_stops", "_stops_sum", "_sum", "_sum_step")

    def __init__(self, reach: Reach) -> None:
        self._reach = reach
        self._size = 0
        # Of a window: the steps at which contexts reach it, in order, and their sum.
        self._stops: list[int] = []
        self._stops_sum = 0
        # Of chunks: the steps at which contexts begin one, and the sum of what they reach.
        self._chunks = Cycle(reach.tokens if reach.chunked else 1)
        self._sum, self._sum_step = 0, 0

    def add(self, step: int, context: int) -> None:
        """Let a sequence attend to `context` tokens at `step`."""
        self._size += 1
        if self._reach.chunked:
            self._at(step)
            self._sum += self._reach.of(context)
            self._chunks.add(step - context + 1)
        elif context < self._reach.tokens:
            stop = step + self._reach.tokens - context
            insort(self._stops, stop)
            self._stops_sum += stop

    def remove(self, step: int, context: int) -> None:
        """Take a sequence out that would attend to `context` tokens at `step`."""
        self._size -= 1
        if self._reach.chunked:
            self._at(step)
            self._sum -= self._reach.of(context)
            self._chunks.remove(step - context + 1)
        else:
            self._drop_until(step)
            if context < self._reach.tokens:
                stop = step + self._reach.tokens - context
                del self._stops[bisect_left(self._stops, stop)]
                self._stops_sum -= stop

    def sums(self, step: int, num_steps: int) -> IntArray:
        """Return the sums of `num_steps` steps from `step` on."""
        if self._reach.chunked:
            self._at(step)
            rises = np.full(num_steps, self._size, np.int64)
            rises -= self._reach.tokens * np.array(self._chunks.by_step(step, num_steps), np.int64)
            rises[0] = self._sum
            rising: IntArray = np.cumsum(rises)
            return rising
        self._drop_until(step)
        stops = self._stops
        num_growing = len(stops)
        lacking = np.empty(num_steps, np.int64)  # what contexts lack of the window together
        ended = [stop - step for stop in stops[: bisect_left(stops, step + num_steps)]]
        growing = num_growing - np.cumsum(np.bincount(ended, minlength=num_steps))
        lacking[0] = self._stops_sum - num_growing * step
        lacking[1:] = growing[:-1]
        np.negative(lacking[1:], out=lacking[1:])
        sums: IntArray = self._size * self._reach.tokens - np.cumsum(lacking)
        return sums

    def _at(self, step: int) -> None:
        """Bring the sum of chunks up to `step`."""
        passed = step - self._sum_step
        falls = self._chunks.count(self._sum_step + 1, passed)
        self._sum += passed * len(self._chunks) - self._reach.tokens * falls
        self._sum_step = step

    def _drop_until(self, step: int) -> None:
        """Forget the stops up to `step`: contexts that have reached the window stay there."""
        done = bisect_right(self._stops, step)
        if done:
            self._stops_sum -= sum(self._stops[:done])
            del self._stops[:done]
