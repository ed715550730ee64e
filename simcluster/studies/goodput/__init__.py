"""Goodput with confidence: a search over rates on replications, and comparisons of strategies.

=========  =========================================================
module     idea
=========  =========================================================
arguments  checks of what is asked for
student    Student's t distribution in closed form
estimate   replications at two rates -> a goodput with its interval
search     the search of one strategy: which runs it wants next
runs       the searches of all strategies, answered by the simulator
pairs      pairs of strategies, whatever their verdicts are
by_rate    pairs of strategies, rate by rate
store      the runs of a search on disk
tables     goodputs as text, rows and files
command    the command line
=========  =========================================================
"""

from simcluster.studies.goodput.estimate import Compared, Estimate, Interval, compare
from simcluster.studies.goodput.runs import Cell, Found, find, simulate_cell, simulate_cells
from simcluster.studies.goodput.search import Located, Outcome, Settings, Verdict

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
