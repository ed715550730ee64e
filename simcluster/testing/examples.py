"""How many examples a property test draws: few at every change, ten times as many when asked."""

from __future__ import annotations

import os
from typing import Final

from hypothesis import HealthCheck, settings

THOROUGH: Final = bool(os.environ.get("SIMCLUSTER_THOROUGH"))
"""Whether the environment asks for a thorough run: ``SIMCLUSTER_THOROUGH=1``."""


def examples(number: int) -> settings:
    """Return the settings of a property test, which does not depend on the machine's speed.

    Parameters
    ----------
    number : int
        Examples to draw; a thorough run draws ten times as many.
    """
    return settings(
        max_examples=10 * number if THOROUGH else number,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow],
    )
