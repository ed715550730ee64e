"""The best strategies for given GPUs, or the cheapest for a needed rate.

Many candidates, few requests at first, intervals at the end.

===========  =======================================================
module       idea
===========  =======================================================
field        the candidates, each once, and the baselines among them
screen       upper bounds from the roofline
race         where attainment crosses the target on one draw
contest      who races on what, and the runs on it
draws        goodputs on several draws, and how far they agree
rounds       rounds that grow longer while the field shrinks
finals       goodputs of the finalists
standings    the order of all candidates after that
explain      bottlenecks, with the figures that show them
margin       latencies below the goodput
spares       instances held against lost ones
plans        the race by cost, for a needed rate
ranking      the outcome: candidates, fronts, plans
work         how far all of that has come
rank         all stages, from a scenario to a ranking
report       a ranking as text, rows, files and pictures
need_report  the plans and margins as text and rows
views        a ranking in a notebook
command      the command line
===========  =======================================================
"""
