"""Quality of answers when requests are routed by difficulty among models; no clock.

Add a kind: a settings class with a ``curve`` in `simcluster.quality.settings` and its name in
``Quality``.
"""

from simcluster.quality.curve import QualityCurve, chosen_models, thresholds
from simcluster.quality.settings import CommonQuality, Quality

__all__ = ["CommonQuality", "Quality", "QualityCurve", "chosen_models", "thresholds"]
