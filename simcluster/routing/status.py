"""Views of instances that report their state from time to time only."""

from __future__ import annotations

from simcluster.request import Request
from simcluster.routing.base import InstanceView
from simcluster.routing.rolling_activation import RollingView


class Status:
    """View that a router has of an instance between reports.

    It is the load last reported plus what was routed since. Room and cached prefixes are always
    current, because instances pull work and the prefix index is shared.

    Attributes
    ----------
    load_tokens, free_blocks : int
        Those of the last report, and the prompts sent since.
    """

    def __init__(self, instance: InstanceView) -> None:
        self._instance = instance
        self.instance_id = instance.instance_id
        self.load_tokens = 0
        self.free_blocks = 0
        self.update()

    def update(self) -> None:
        """Report now."""
        self.load_tokens = self._instance.load_tokens
        self.free_blocks = self._instance.free_blocks

    def sent(self, request: Request) -> None:
        """Know of `request`, which has just been given to the instance."""
        self.load_tokens += request.prompt_len

    def has_room(self, request: Request) -> bool:
        """Whether it would take `request` into its next step, now."""
        return self._instance.has_room(request)

    def cached_tokens(self, request: Request) -> int:
        """Tokens of `request` in its cache, now."""
        return self._instance.cached_tokens(request)


class RollingStatus:
    """View that rolling activation has of an instance between reports.

    It is the state last reported; the requests routed since count as waiting.
    """

    def __init__(self, instance: RollingView) -> None:
        self._instance = instance
        self.num_lanes = instance.num_lanes
        self.prompt_blocks = instance.prompt_blocks
        self.update()

    def update(self) -> None:
        """Report now."""
        instance = self._instance
        self._steps = [instance.decode_step_of(lane) for lane in range(self.num_lanes)]
        self.free_blocks = instance.free_blocks
        self.waiting_blocks = instance.waiting_blocks
        self.has_unfinished = instance.has_unfinished

    def sent(self, request: Request) -> None:
        """Know of `request`, which has just been given to the instance."""
        self.waiting_blocks += self.prompt_blocks(request.prompt_len)
        self.has_unfinished = True

    def decode_step_of(self, lane: int) -> int:
        """Decode steps of `lane` at the last report."""
        return self._steps[lane]

    def free_blocks_after(self, num_steps: int) -> int:
        """Free KV blocks: those of the last report."""
        return self.free_blocks
