"""Quality of answers when requests are routed by difficulty among models; no clock.

Add a kind: a settings class with a ``curve`` in `simcluster.quality.settings` and its name in
``Quality``.

========  ========================================================
module    idea
========  ========================================================
curve     quality by the share of requests that each model answers
settings  the table [quality]: where the curve comes from
========  ========================================================
"""

from simcluster.quality.curve import QualityCurve, chosen_models, thresholds
from simcluster.quality.settings import CommonQuality, Quality

__all__ = ["CommonQuality", "Quality", "QualityCurve", "chosen_models", "thresholds"]
