"""Constants of the kernel law from measured kernels.

=========  ===============================================
module     idea
=========  ===============================================
readers    formats of measured kernels
law        the kernel law for arrays of measured kernels
tiles      tiles of experts' rows for arrays of batches
fit        constants by least squares on relative errors
host       host times of an engine
report     constants as a catalogue table, errors as lines
calibrate  measured kernels -> a catalogue file
derive     the fitted sets of the packaged catalogue
links      all-reduces of the packaged catalogue
command    the command line
=========  ===============================================
"""

from simcluster.fidelity.calibrate.fit import fit, fit_link, held_out
from simcluster.fidelity.calibrate.law import kernel_s
from simcluster.fidelity.calibrate.readers.samples import Samples, joined, samples

__all__ = ["Samples", "fit", "fit_link", "held_out", "joined", "kernel_s", "samples"]
