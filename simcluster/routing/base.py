"""Which instance gets a request. Pure decisions on what instances report; no clock."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from simcluster.request import Request


class InstanceView(Protocol):
    """What a router may know of an instance: its state at its last step boundary."""

    instance_id: int

    @property
    def load_tokens(self) -> int:
        """Tokens of its waiting and running requests."""

    @property
    def free_blocks(self) -> int:
        """Free KV blocks."""

    def cached_tokens(self, request: Request) -> int:
        """Tokens of `request` that it would find in its KV cache."""

    def has_room(self, request: Request) -> bool:
        """Whether it would take `request` into its next step."""


class Router(Protocol):
    """Chooses an instance for each request."""

    def choose(self, request: Request, instances: Sequence[InstanceView], now: float) -> int | None:
        """Return the index in `instances` that gets `request` at time `now` (s).

        None leaves the request pending; the same request is offered again when an instance reaches
        a step boundary.
        """
