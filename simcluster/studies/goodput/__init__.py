"""Goodput with confidence: a search over rates on replications, and comparisons of strategies.

=========  =========================================================
module     idea
=========  =========================================================
arguments  checks of what is asked for
rules      what is asked of a search, and the numbers of its method
estimate   replications at two rates -> a goodput with its interval
probe      runs at one rate, and what they show
shape      runs of two kinds: a plan that works until it collapses
locate     from rate to rate until two close ones have the crossing between them
search     the search of one strategy: which runs it wants next
users      the same for the users of a closed loop
arrivals   what a search varies, by the kind of the arrivals
runs       the searches of all strategies, answered by the simulator
errors     how far goodputs move with the error of the step times
pairs      pairs of strategies, whatever their verdicts are
moved      what longer requests and tighter targets do
by_rate    pairs of strategies, rate by rate
tables     goodputs as text, rows and files
views      goodputs in a notebook
command    the command line
=========  =========================================================
"""

from simcluster.runs.cell import Cell
from simcluster.studies.goodput.estimate import Estimate, Interval
from simcluster.studies.goodput.pairs import Compared, compare
from simcluster.studies.goodput.probe import Outcome
from simcluster.studies.goodput.rules import Settings
from simcluster.studies.goodput.runs import Found, find, simulate_cell, simulate_cells
from simcluster.studies.goodput.search import Located, Verdict

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
