"""For tests, ours and a stranger's: fixed inputs, laws that any run obeys, a look inside a run.

==========  =========================================================
module      idea
==========  =========================================================
specs       GPUs, links, models and engines that no calibration moves
step_times  step times that can be written down on paper
workloads   workloads written out by hand
examples    how many examples a property test draws
laws        laws that the frames of any run obey
watch       a strategy wrapped to keep books of its own
contracts   one suite per extension point, for a plug-in to inherit
toy         a toy cluster
==========  =========================================================
"""
