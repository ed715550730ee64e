"""Routing and deployment of several models on several GPU types, optimised together (BOute).

An offline stage simulates single kinds of replicas into a database of latencies by load; an online
stage searches load fractions and fleets by looking them up; the finalists are simulated token by
token. `simcluster.planner.cooptimize.run.cooptimize` does all of it.
"""
