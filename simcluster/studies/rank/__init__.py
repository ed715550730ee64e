"""The best strategies for given GPUs: many candidates, few requests at first, intervals at the end.

===========  ================================================================
module       idea
===========  ================================================================
screen       upper bounds from the roofline
field        the candidates of the space and of the file, each once
race         candidates on the same requests
draws        goodputs on several draws, and how far they agree
contest      what all rounds share: candidates, bounds, lengths of runs
rounds       rounds that grow longer while the field shrinks
finals       goodputs of the finalists
standings    what rounds and finals say together
explain      bottlenecks, with the figures that show them
margin       how far the best are from their targets below their goodputs
spares       spare instances that a plan needs
plans        the cheapest plans for a needed rate
ranking      the outcome: candidates and fronts
rank         all stages, from a scenario to a ranking
need_report  plans and margins as text and as plain values
report       a ranking as text, rows, files and pictures
command      the command line
===========  ================================================================
"""
