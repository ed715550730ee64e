"""Measured kernel times in the place of the law's: ``engine.kernels``.

===========  ========================================================================
module       idea
===========  ========================================================================
base         what a source answers, and how operators of a step become calls
curve        measured over law's time of decode attention, by tokens of context
ragged       interpolation among measured points
own          a user's file
aic          NVIDIA's aiconfigurator-core, an optional package
===========  ========================================================================
"""

from __future__ import annotations

from functools import lru_cache

from simcluster.catalog.kernel_file import KernelTable
from simcluster.catalog.specs import EngineProfile, GPUSpec
from simcluster.config import AICONFIGURATOR, LAW, Environment, ModelConfig
from simcluster.roofline.measured.base import Coverage, MeasuredKernels

__all__ = ["Coverage", "MeasuredKernels", "measured_kernels"]


def measured_kernels(environment: Environment, tp_size: int) -> MeasuredKernels | None:
    """Return the measured kernel times that ``engine.kernels`` names; None for the law's.

    Raises
    ------
    ConfigError
        If they are not of this GPU, engine or model.
    DataError
        If a file has no rows of the GPU.
    """
    kernels = environment.kernels
    if kernels == LAW:
        return None
    gpu, engine = environment.cluster.gpu, environment.engine
    return _source(kernels, environment.model, gpu, engine, tp_size)


@lru_cache(maxsize=32)
def _source(
    kernels: str | KernelTable,
    model: ModelConfig,
    gpu: GPUSpec,
    engine: EngineProfile,
    tp_size: int,
) -> MeasuredKernels:
    """Return the kernel times of equal settings once: what they look up, they keep."""
    if isinstance(kernels, KernelTable):
        from simcluster.roofline.measured.own import OwnKernels

        return OwnKernels(kernels, model, gpu, engine, tp_size)
    assert kernels == AICONFIGURATOR, kernels
    from simcluster.roofline.measured.aic import AicKernels

    return AicKernels(model, gpu, engine, tp_size)
