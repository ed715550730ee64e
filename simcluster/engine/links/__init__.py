"""Links: who shares a wire, and how fast a transfer or a collective is on it.

========  ====================================================================
module    idea
========  ====================================================================
link      flows on links, with max-min fair shares
topology  PCIe switches, NVLink domains, NICs, the network; paths through them
wires     collectives on wires that KV transfers use too
========  ====================================================================
"""
