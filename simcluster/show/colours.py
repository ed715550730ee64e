"""Colours of strategies, the same in pictures and reports."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

COLOURS: Final = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's palette for all kinds of colour vision, without its yellow (pale on white)."""
_PLACES: Final = {
    "ecoserve": 0,
    "padg": 0,
    "vllm": 1,
    "nodg": 1,
    "sarathi": 2,
    "sarathiserve": 2,
    "nodgchunked": 2,
    "chunkedprefill": 2,
    "distserve": 3,
    "fudg": 3,
    "fudgintranode": 3,
    "mooncake": 4,
    "fudginternode": 4,
}
"""Places in `COLOURS` of the strategies that people compare, and of the families of a ranking."""


def places(names: Iterable[str]) -> dict[str, int]:
    """Return a place for each name: that of a known strategy everywhere, else the next free one.

    Case, spaces and signs do not count. Of two names with the same place the first has it.

    >>> places(["mine", "vLLM", "EcoServe", "vllm"])
    {'mine': 2, 'vLLM': 1, 'EcoServe': 0, 'vllm': 3}
    """
    own = list(dict.fromkeys(names))
    found: dict[str, int] = {}
    for name in own:
        place = _PLACES.get(re.sub(r"[^a-z0-9]", "", name.lower()))
        if place is not None and place not in found.values():
            found[name] = place
    free = (place for place in range(len(own) + len(COLOURS)) if place not in found.values())
    return {name: found[name] if name in found else next(free) for name in own}
