"""What comes out of a run: frames with a schema, and the numbers made of them; no clock.

=========  =========================================================
module     idea
=========  =========================================================
schema     columns of every frame, with type, unit and meaning
metrics    latencies, targets met, levels over time, one row per run
goodput    goodput on a grid of rates
packed     frames of long runs in little memory
summary    the row of a run without its frames
parts      a run in parts: some requests at a time
unroll     every step and token of a run, from its spans
itl        gaps between the tokens of a run, and their percentiles
breakdown  where the time of a request goes
by_group   runs of several models, group by group
=========  =========================================================
"""
