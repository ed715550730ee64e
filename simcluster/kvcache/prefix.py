"""A block pool in which sequences with a common prefix share its blocks."""

from __future__ import annotations

from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from typing import ClassVar

from simcluster.errors import InvariantError
from simcluster.kvcache.layout import BlockLayout
from simcluster.kvcache.pool import BlockPool
from simcluster.request import Request


class PrefixPool(BlockPool):
    """Blocks of KV cache, of which full ones outlive their sequence until the room is needed.

    A full block is known by an id that stands for all tokens up to its end (a hash chain), so equal
    ids mean an equal prefix. Whoever comes in takes the longest known prefix of its blocks instead
    of computing it; the last token is always computed, so that there is something to sample from,
    and with it its whole block, which is not shared for writing. Blocks are known once the step
    that computes them has ended; those of the output when the sequence leaves. A sequence that
    computed a block which somebody else has made known in the meantime gives its own copy back.

    Known blocks that nobody holds count as free. They are evicted, the one longest out of use
    first, when no other block is free; of one sequence the last block goes first. So whoever holds
    a block holds all before it, and a block is never known without those before it.

    Parameters
    ----------
    num_blocks, block_size, watermark, layout
        As in `BlockPool`; some layers must keep all tokens. Those with a window are taken to have
        what they need of a prefix wherever these have it, in blocks that are not shared.

    Notes
    -----
    Reference counts, hash chains and eviction as in vLLM (Kwon et al., SOSP 2023; its V1 block
    pool), which keeps second copies of a block until their sequence leaves and evicts in the order
    of a queue in which blocks that nobody knows stand too. Giving second copies back is SGLang's
    way (Zheng et al., NeurIPS 2024, RadixAttention).
    """

    __slots__ = ("_held", "_idle", "_users", "_weight")

    shares: ClassVar[bool] = True

    def __init__(
        self,
        num_blocks: int,
        block_size: int,
        watermark: float = 0.0,
        layout: BlockLayout | None = None,
    ) -> None:
        super().__init__(num_blocks, block_size, watermark, layout)
        self._weight = self.layout.full  # blocks of the pool for one that is shared
        self._users: dict[int, int] = {}  # of every known block: how many sequences hold it
        self._idle: OrderedDict[int, None] = OrderedDict()  # held by none, longest out of use first
        self._held: dict[int, int] = {}  # known blocks of a sequence: the first so many of its own

    @property
    def num_known(self) -> int:
        """Blocks that can be found, held by somebody or not."""
        return len(self._users)

    @property
    def num_saved(self) -> int:
        """Blocks more that the sequences here would take if each had its own."""
        return self._weight * sum([count - 1 for count in self._users.values() if count])

    def allocate(self, num_blocks: int) -> None:
        """Take `num_blocks`, evicting where need be; see `BlockPool.allocate`."""
        super().allocate(num_blocks)
        if len(self._idle) * self._weight > self.free_blocks:
            self._evict_to(self.free_blocks // self._weight)

    def _evict_to(self, num_blocks: int) -> None:
        idle, users = self._idle, self._users
        while len(idle) > num_blocks:
            del users[idle.popitem(last=False)[0]]

    def settle(self, taken_blocks: int) -> None:
        """Evict what the step under way needs, as its end would."""
        if len(self._idle) * self._weight > self.free_blocks - taken_blocks:
            self._evict_to((self.free_blocks - taken_blocks) // self._weight)

    def find(self, request: Request, num_tokens: int) -> tuple[int, int]:
        """Leading blocks of `request` that are known, and those of the pool that somebody holds.

        See `BlockPool.find`. Both are found by bisection: what follows an unknown block is not
        known, and what follows an idle one is idle.
        """
        limit = (num_tokens - 1) // self.block_size
        users = self._users
        found = _leading(request.block_ids, limit, users.__contains__)
        in_use = _leading(request.block_ids, found, lambda block: users[block] > 0)
        return found, in_use * self._weight

    def take(self, request: Request, num_blocks: int, num_found: int) -> None:
        """Take `num_blocks` for `request`, of which it shares the first `num_found`."""
        number = request.request_id
        if number in self._held:
            raise InvariantError(f"request {number} has KV blocks here already")
        users, idle = self._users, self._idle
        for block in _part(request.block_ids, 0, num_found):
            if not users[block]:
                del idle[block]
                self.free_blocks -= self._weight
            users[block] += 1
        self._held[number] = num_found
        if not request.num_preemptions:
            self.num_asked += request.prompt_len // self.block_size
            self.num_found += num_found
        self.allocate(num_blocks - num_found * self._weight)

    def computed(self, request: Request) -> None:
        """Make the full blocks of `request` known that its computed tokens fill."""
        number = request.request_id
        held = self._held[number]
        last = request.num_computed_tokens // self.block_size
        if last <= held:
            return
        users, idle = self._users, self._idle
        for block in _part(request.block_ids, held, last):
            others = users.get(block)
            if others is None:
                users[block] = 1
            else:
                if others:
                    self.free_blocks += self._weight
                else:
                    del idle[block]
                users[block] = others + 1
            held += 1
        self._held[number] = held

    def leave(self, request: Request, num_blocks: int) -> None:
        """Give back the `num_blocks` of `request`; the full ones stay known."""
        self.computed(request)
        users, idle = self._users, self._idle
        held = self._held.pop(request.request_id)
        own = list(_part(request.block_ids, 0, held))
        freed = num_blocks - held * self._weight
        for block in reversed(own):
            left = users[block] - 1
            users[block] = left
            if not left:
                idle[block] = None
                freed += self._weight
        self.release(freed)

    def check(self) -> None:
        """Check the books against each other.

        Raises
        ------
        InvariantError
            If a count is negative, idle blocks are not those without users, or there are more of
            them than free blocks.
        """
        if any(count < 0 for count in self._users.values()):
            raise InvariantError("a block with fewer than no users")
        if {block for block, count in self._users.items() if not count} != set(self._idle):
            raise InvariantError("idle blocks are not those that nobody holds")
        if sum(self._users.values()) != sum(self._held.values()):
            raise InvariantError("users of blocks are not the sequences that hold them")
        if not len(self._idle) * self._weight <= self.free_blocks <= self.num_blocks:
            raise InvariantError("more blocks known than there are")


def _leading(runs: Sequence[range], limit: int, holds: Callable[[int], bool]) -> int:
    """How many of the first `limit` ids hold, where none does after one that does not."""
    count = 0
    for run in runs:
        length = min(len(run), limit - count)
        if length <= 0:
            break
        if holds(run[length - 1]):
            count += length
            continue
        return count + bisect_left(run[:length], True, key=lambda block: not holds(block))
    return count


def _part(runs: Sequence[range], start: int, stop: int) -> Iterator[int]:
    """Give the ids from number `start` to before `stop`, or to the last."""
    parts = []
    for run in runs:
        if stop <= 0:
            break
        parts.append(run[max(start, 0) : stop])
        start -= len(run)
        stop -= len(run)
    return chain.from_iterable(parts)
