"""Workloads: arrival processes, length distributions, traces; drawn before time starts.

===========  ==========================================================================
module       idea
===========  ==========================================================================
base         the contracts: arrival processes, length distributions, the drawn workload
settings     the table [workload], and the registries ARRIVALS and LENGTHS
build        settings -> the requests of one run
renewal      Poisson, gamma and constant gaps
profiles     Poisson arrivals whose rate changes: on-off phases, a schedule
closed_loop  a fixed number of requests in the system
sessions     conversations of several turns on shared system prompts
clients      a mixture of many clients (ServeGen)
lengths      fixed, lognormal, quantile and catalogue lengths
classes      classes of requests, and their lengths together
replay       arrivals or lengths of a trace
traces       readers of trace files
hashes       ids of the prompt blocks that requests share
===========  ==========================================================================
"""

from simcluster.workload.base import (
    ArrivalProcess,
    ArrivalTimes,
    LengthDistribution,
    Offer,
    Workload,
)
from simcluster.workload.build import build
from simcluster.workload.settings import ARRIVALS, LENGTHS, WorkloadSettings

__all__ = [
    "ARRIVALS",
    "LENGTHS",
    "ArrivalProcess",
    "ArrivalTimes",
    "LengthDistribution",
    "Offer",
    "Workload",
    "WorkloadSettings",
    "build",
]
