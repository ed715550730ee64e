"""Results as one HTML page that needs no network: the answer, how sure it is, and why.

=============  ==================================================================
module         idea
=============  ==================================================================
page           what a report is made of, and the HTML made of that
charts         interactive charts, as plotly.js takes them
common         what all reports say: scenario, trust, what is not modelled
run_facts      what a run or a comparison says, read once
run_charts     its charts
of_runs        of a run or a comparison
of_goodput     of a search for goodputs
of_rank        of a ranking
of_cooptimize  of a co-optimisation of several models
kinds          kinds of result folders
difference     what differs between two result folders
make           recognise a folder, write its report
views          results in a notebook
=============  ==================================================================
"""
