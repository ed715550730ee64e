"""Runs: one simulation, many of them on all cores, and the folders that keep them.

=============  =================================================================
module         idea
=============  =================================================================
cell           one run of a study, and the digests that say what it is
result         frames of one run
source         requests enter a deployment, by the clock or in turn
watch          how far the run under way is
simulate       (scenario, seed) -> result
fold           a run without frames: what has ended is counted and forgotten
recorded       runs on disk: recognised, checked, used again
folder         result folders: written whole or not at all, read back as frames
output         folders and files for results, refused before the work
executor       many runs at once: joblib here, Dask on a cluster
compare        every strategy at every rate with every seed
kernel_budget  how many events are too many, kernel by kernel
views          how results show themselves: the module that does is found by name
=============  =================================================================
"""
