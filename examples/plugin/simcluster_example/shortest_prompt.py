"""A queue: the shortest prompt first."""

from __future__ import annotations

from simcluster.request import Request
from simcluster.sched import KeyedQueue


class ShortestPrompt(KeyedQueue):
    """Admit the request with the shortest prompt; of equals the one that came first."""

    def key(self, request: Request) -> float:
        """Prompt of `request` (tokens)."""
        return request.prompt_len
