"""A scenario on paper: what fits, how long steps take, what it carries at most; no time passes.

========  ===================================================================
module    idea
========  ===================================================================
requests  the requests in a few numbers: median, means, reuse of prefixes
pools     instances of one role: weights, KV, batches, step times
moves     the way of the KV cache from prefill to decode
facts     all of it for every strategy of a scenario, as JSON has it
report    the facts as text
========  ===================================================================
"""
