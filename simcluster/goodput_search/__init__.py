"""Goodput with confidence: a search over rates on replications, and comparisons of strategies."""

from simcluster.goodput_search.estimate import Compared, Estimate, Interval, compare
from simcluster.goodput_search.runs import Cell, Found, find, simulate_cell, simulate_cells
from simcluster.goodput_search.search import Located, Outcome, Settings, Verdict

__all__ = [
    "Cell",
    "Compared",
    "Estimate",
    "Found",
    "Interval",
    "Located",
    "Outcome",
    "Settings",
    "Verdict",
    "compare",
    "find",
    "simulate_cell",
    "simulate_cells",
]
