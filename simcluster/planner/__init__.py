"""Planners: searches that run many simulations and say what to deploy."""
