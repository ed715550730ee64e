"""Runs: one simulation, many of them on all cores, and the folders that keep them.

=============  =================================================================
module         idea
=============  =================================================================
simulate       (scenario, seed) -> result
recorded       runs on disk: named by what they are made of, checked, used again
folder         result folders: written whole or not at all, read back as frames
output         folders and files for results, refused before the work
executor       many calls at once: joblib here, Dask on a cluster
compare        every strategy at every rate with every seed
kernel_budget  how many events are too many, kernel by kernel
=============  =================================================================
"""
