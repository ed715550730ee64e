"""Constants of the kernel law from measured kernels, and how far the catalogue's are from them."""

from simcluster.calibration.checks import checks
from simcluster.calibration.fit import fit, fit_link, held_out
from simcluster.calibration.law import kernel_s
from simcluster.calibration.samples import Samples, joined, samples

__all__ = ["Samples", "checks", "fit", "fit_link", "held_out", "joined", "kernel_s", "samples"]
