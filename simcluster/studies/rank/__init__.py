"""The best strategies for given GPUs: many candidates, few requests at first, intervals at the end.

=======  =================================================
module   idea
=======  =================================================
screen   upper bounds from the roofline
race     candidates on the same requests
draws    goodputs on several draws, and how far they agree
rounds   rounds that grow longer while the field shrinks
finals   goodputs of the finalists, and which pairs differ
explain  bottlenecks, with the figures that show them
ranking  the outcome: candidates and fronts
rank     all stages, from a scenario to a ranking
report   a ranking as text, rows, files and pictures
command  the command line
=======  =================================================
"""
