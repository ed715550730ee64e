"""Questions asked of many runs.

============  ============================================================
module        idea
============  ============================================================
prefix_reuse  share of a workload's prompts that a prefix cache would hold
trace_file    a trace at a glance: its format, rates, lengths and reuse
space         candidates: strategies x parallelism x splits x limits
bestserve     BestServe's estimator
work          how far a search or a ranking has come
goodput       the highest rate within the targets, with its interval
rank          the best strategies for given GPUs
plan          from a few facts to GPUs, strategy and cost, by rank
plan_command  the command simcluster plan
check         what is known of a scenario without simulating it
cooptimize    routing and deployment of several models together (BOute)
============  ============================================================
"""
