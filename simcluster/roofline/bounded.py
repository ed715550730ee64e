"""Caches of step-time models: bounded, so that long runs do not fill the memory."""

from __future__ import annotations

from typing import Final, TypeVar

K = TypeVar("K")
V = TypeVar("V")

CACHE_SIZE: Final = 32768
"""Entries of a cache; it is emptied when it is full."""


def remember(cache: dict[K, V], key: K, value: V) -> V:
    """Store `value` in a bounded cache and return it."""
    if len(cache) >= CACHE_SIZE:
        cache.clear()
    cache[key] = value
    return value
