"""Micro-benchmarks of one's own GPU, written as the CSV that ``simcluster calibrate`` reads.

Needs PyTorch (extra ``gpu``), which is imported when something is measured and not before.

============  =====================================================================
module        idea
============  =====================================================================
plan          which calls: shapes of catalogue models and a grid of powers of two
kernels       a call -> buffers and a function that runs it
timers        a function -> its time, in a captured graph with cold weights
dispatch      what it costs the CPU to launch kernels and graphs
collectives   the same for several GPUs, one process each
record        rows -> a CSV file that is whole at every moment
session       all of it within a budget of time
command       the command line
============  =====================================================================
"""
