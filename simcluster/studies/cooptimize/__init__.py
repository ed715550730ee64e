"""Routing and deployment of several models on several GPU types, optimised together (BOute).

An offline stage simulates single kinds of replicas into a database of latencies by load; an online
stage searches load fractions and fleets by looking them up; the finalists are simulated token by
token. `simcluster.studies.cooptimize.run.cooptimize` does all of it.

========  =========================================================
module    idea
========  =========================================================
database  latencies of each kind of replica by load, simulated once
fleets    units that serve one model; the few worth looking at
choices   plans within the known limits, as points of few variables
front     Pareto fronts and their hypervolume
targets   the targets of ``[slo]``: long runs, and what they say
judge     plans judged by the database, or token by token
search    every plan of the skeleton
sampling  plans proposed by a sampler of Optuna
run       all stages, from a scenario to a front
report    the outcome as text, values and a picture
command   the command line
========  =========================================================
"""
