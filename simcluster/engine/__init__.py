"""Where simulated time passes; with the loop of a run, the only code that imports SimPy.

Read `clock`, then `instance.instance`, `groups.cluster` and `groups.front_end`, then the links.

===========  ====================================================================
module       idea
===========  ====================================================================
clock        events at absolute times on the grid, and the rule for ties
log          rows of frames: tuples while running, typed arrays at the end
request_log  rows of the requests frame
recorder     where everything that happens in a run is written down
shape        what an instance is made of, and its limits
placement    free GPUs, and where an instance goes
links        KV transfers and collectives on the wires of the machines
instance     one copy of a model: its loop, pipeline, and kernels one by one
groups       the machines with their instances; front ends, rings, hand-over
===========  ====================================================================
"""
