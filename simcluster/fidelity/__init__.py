"""How far to trust it: measured kernels, constants fitted to them, simulated against measured.

=========  ==============================================================
module     idea
=========  ==============================================================
measure    micro-benchmarks of one's own GPU
calibrate  constants of the kernel law from measured kernels
validate   simulated against measured, by data set, GPU, model and regime
=========  ==============================================================
"""
