"""All checks on a folder of measured sets, and what is absent."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from simcluster.errors import DataError, nearest
from simcluster.fidelity.validate import (
    aic_e2e,
    aic_kernels,
    aic_layouts,
    aic_moe,
    apex_e2e,
    blis_vllm015,
    distserve_fits,
    eager_engines,
    ecoserve_prefill,
    gpustack_bench,
    inferencex_decode,
    kernel_checks,
    l20_five_systems,
    llmservingsim_vllm,
    mlperf_v51,
    mooncake_a10_pd,
    published_anchors,
    sarathi_iter,
    splitwise_perf,
)
from simcluster.fidelity.validate.base import Check, UnavailableError
from simcluster.fidelity.validate.blis_vllm015 import Rival

CheckFunction = Callable[[Path], list[Check]]
"""From the folder of measured sets to checks; a missing file raises ``FileNotFoundError``, and what
is not installed `UnavailableError`."""

END_TO_END: Final[dict[str, CheckFunction]] = {
    splitwise_perf.DATA_SET: splitwise_perf.checks,
    apex_e2e.DATA_SET: apex_e2e.checks,
    aic_e2e.DATA_SET: lambda data_dir: aic_e2e.checks(data_dir) + aic_moe.checks(data_dir),
    aic_layouts.DATA_SET: aic_layouts.checks,
    aic_kernels.DATA_SET: aic_kernels.checks,
    llmservingsim_vllm.DATA_SET: llmservingsim_vllm.checks,
    blis_vllm015.DATA_SET: blis_vllm015.checks,
    l20_five_systems.DATA_SET: l20_five_systems.checks,
    mooncake_a10_pd.DATA_SET: mooncake_a10_pd.checks,
    sarathi_iter.DATA_SET: sarathi_iter.checks,
    distserve_fits.DATA_SET: distserve_fits.checks,
    eager_engines.DATA_SET: eager_engines.checks,
    mlperf_v51.DATA_SET: mlperf_v51.checks,
    gpustack_bench.DATA_SET: gpustack_bench.checks,
    inferencex_decode.DATA_SET: inferencex_decode.checks,
    published_anchors.DATA_SET: published_anchors.checks,
    ecoserve_prefill.DATA_SET: ecoserve_prefill.checks,
}
"""Checks of whole steps and served requests, by data set."""


@dataclass(frozen=True, slots=True)
class Absent:
    """A check that could not be made."""

    data_set: str
    """Its name."""
    reason: str
    """What is missing."""


@dataclass(frozen=True, slots=True)
class Validation:
    """What `validate` found."""

    checks: tuple[Check, ...]
    """In the order of the report."""
    absent: tuple[Absent, ...]
    """Checks whose data are missing."""
    seconds: float
    """How long it took (s)."""
    made: tuple[str, ...] = ()
    """Data sets that were compared, also where no check came of them."""
    rivals: tuple[Rival, ...] = ()
    """Other simulators on the same runs."""


def validate(data_dir: Path, only: Sequence[str] = ()) -> Validation:
    """Run all checks on the folder `data_dir` of measured sets, kernels first.

    Parameters
    ----------
    data_dir : Path
        One folder per data set.
    only : sequence of str
        Names of data sets; all by default.

    Raises
    ------
    DataError
        If the folder is not there, a file in it cannot be used, or a name is none of a check.
    """
    if not data_dir.is_dir():
        raise DataError(f"{data_dir}: no such folder of measured sets")
    functions = {"kernels": kernel_checks.checks, **END_TO_END}
    for name in only:
        if name not in functions:
            raise DataError(f"{name!r}: no check of this name. {nearest(name, functions)}")
    start = time.perf_counter()
    checks: list[Check] = []
    absent: list[Absent] = []
    made: list[str] = []
    rivals: list[Rival] = []
    for name, function in functions.items():
        if only and name not in only:
            continue
        try:
            checks += function(data_dir)
            made += _sets_of(name, data_dir)
            if name == blis_vllm015.DATA_SET:
                rivals += blis_vllm015.rivals(data_dir)
        except FileNotFoundError as error:
            missing = Path(str(error.filename or error))
            shown = missing.relative_to(data_dir) if missing.is_relative_to(data_dir) else missing
            absent.append(Absent(name, f"{shown} is missing"))
        except UnavailableError as error:
            absent.append(Absent(name, str(error)))
    seconds = time.perf_counter() - start
    return Validation(tuple(checks), tuple(absent), seconds, tuple(made), tuple(rivals))


def _sets_of(name: str, data_dir: Path) -> list[str]:
    """Data sets behind a check: kernels have several, each of which may be absent."""
    if name != "kernels":
        return [name]
    return [one for one in kernel_checks.DATA_SETS if (data_dir / one).is_dir()]
