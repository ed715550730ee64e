"""KV of preempted requests in host memory."""

from __future__ import annotations

from collections import deque

from simcluster.kvcache import BlockPool
from simcluster.request import Request


class SwapSpace:
    """Requests whose KV was copied to host memory, and the copies that a step waits for.

    Parameters
    ----------
    host : BlockPool or None
        Host memory; None for none, and nothing is ever swapped.

    Attributes
    ----------
    requests : deque of Request
        The swapped requests, the next to come back first.
    copied_blocks : int
        Blocks copied to or from host memory since the number was last set to 0: the next step waits
        for these copies.
    num_swaps : int
        Requests swapped out so far.
    """

    def __init__(self, host: BlockPool | None) -> None:
        self.host = host
        self.requests: deque[Request] = deque()
        self.copied_blocks = 0
        self.num_swaps = 0

    def has_room(self, num_blocks: int) -> bool:
        """Whether `num_blocks` KV blocks fit."""
        return self.host is not None and num_blocks <= self.host.free_blocks

    def put(self, request: Request, num_blocks: int) -> None:
        """Copy the `num_blocks` of `request`, which has just lost them, to host memory."""
        assert self.host is not None, "there is room"
        self.host.allocate(num_blocks)
        self.copied_blocks += num_blocks
        self.num_swaps += 1
        self.requests.appendleft(request)

    def take(self, num_blocks: int, num_found: int) -> None:
        """Copy the `num_blocks` of the first request back, but the `num_found` that are there."""
        assert self.host is not None, "there is a swapped request"
        self.requests.popleft()
        self.host.release(num_blocks)
        self.copied_blocks += num_blocks - num_found
