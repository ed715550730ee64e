"""Workloads: arrival processes, length distributions, traces; drawn before time starts.

============  ===========================================================================
module        idea
============  ===========================================================================
base          the contracts: arrival processes, length distributions, the drawn workload
settings      the table [workload], and the registries ARRIVALS and LENGTHS
build         settings -> the requests of one run
renewal       Poisson, gamma and constant gaps
profiles      Poisson arrivals whose rate changes: on-off phases, a schedule
closed_loop   a fixed number of requests in the system
sessions      conversations of several turns on shared system prompts
turns         requests that wait for answers, and the prompts that turns add up to
clients       a mixture of many clients (ServeGen)
lengths       fixed, lognormal, quantile and catalogue lengths
classes       classes of requests, and their lengths together
hashes        ids of the prompt blocks that requests share
files         lines and cells of input files, with limits
records       rows of CSV, JSON and Parquet files, some at once
cells         cells as numbers, dates and ids
block_ids     ids of single blocks -> ids of whole prefixes
formats       the published formats of traces
recognise     format, unit and block size of a file: told, proved, or refused
traces        the requests of a trace file
replay        arrivals or lengths of a trace
trace_blocks  blocks of a trace, drawn with repetition
============  ===========================================================================
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
