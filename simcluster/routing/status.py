"""What a router knows of an instance that reports its load from time to time only."""

from __future__ import annotations

from simcluster.request import Request
from simcluster.routing.base import InstanceView


class Status:
    """An instance with the load it reported last; what was sent to it since is added.

    Whether it has room, and which prefixes it has cached, is always of now: the first is asked by
    instances that fetch their work, the second read from a shared index.

    Parameters
    ----------
    instance : InstanceView
        Who reports.

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
