"""Planners: searches that run many simulations and say what to deploy.

`planner.rank` ranks every strategy for given GPUs, `planner.bestserve` estimates as BestServe does,
`planner.cooptimize` optimises routing and deployment together.
"""
