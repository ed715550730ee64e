"""Instances together: on the machines of a run, behind a front end, in a ring, at a hand-over.

===============  ==============================================================
module           idea
===============  ==============================================================
cluster          the machines of a run, and the instances placed on them
api_server       CPU processes that every request passes, and that limit them
reports          loads that instances report from time to time
front_end        a door: requests are routed, or wait to be
prefill_gateway  doors of prefill groups, whose requests are handed over
step_connector   the same inside the steps, as in vLLM's V0 engine
handover         prefill group to decode group: choose, reserve, transfer, join
macro_instance   a ring: instances that take turns in prefilling (EcoServe)
overall          several rings that grow, split, shrink and merge (mitosis)
autoscaler       instances that come and go by a threshold
===============  ==============================================================
"""
