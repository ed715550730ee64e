"""Workloads: arrival processes, length distributions, traces; drawn before time starts."""

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
