"""How far simulated times are from measured ones, stated per data set, GPU, model and regime."""

from simcluster.accuracy.base import Check, check

__all__ = ["Check", "check"]
