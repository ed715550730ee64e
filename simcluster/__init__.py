"""simcluster: which serving strategy, on which GPUs, carries the most requests within targets."""

from simcluster._version import __version__
from simcluster.scenario import Scenario
from simcluster.scenario_file import load, resolve
from simcluster.simulate import simulate
from simcluster.store import read
from simcluster.sweep import compare

__all__ = ["Scenario", "__version__", "compare", "load", "read", "resolve", "simulate"]
