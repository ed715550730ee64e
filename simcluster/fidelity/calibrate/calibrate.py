"""From measured kernels to a catalogue file: what ``simcluster calibrate`` does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from simcluster import catalog
from simcluster.catalog.specs import GPUSpec, KernelConstants
from simcluster.catalog.toml_writer import to_toml
from simcluster.errors import DataError, nearest
from simcluster.fidelity.calibrate import host
from simcluster.fidelity.calibrate.fit import LEAST_ROWS, fit, fit_link, held_out
from simcluster.fidelity.calibrate.readers import KERNELS, LINKS, plain_csv, splitwise_perf
from simcluster.fidelity.calibrate.readers.samples import Samples, joined
from simcluster.fidelity.calibrate.report import (
    error_lines,
    experts_row,
    from_memory,
    kernels_row,
    rounded,
    timed,
)
from simcluster.show.text import aligned
from simcluster.units import US

_NEWEST: Final = ("aic_ops", "llmservingsim_ops")
_HOST: Final = ("vidur_cpu_overhead", "splitwise_perf")
_COLLECTIVES: Final = ("vidur_network",)
SETS: Final = (*KERNELS, *_COLLECTIVES, *_HOST)
"""Published sets that can be read."""


@dataclass(frozen=True, slots=True)
class ErrorRow:
    """Errors of one operator, in the data and held out (shares)."""

    operator: str
    """Which; ``"whole layers"`` for sums."""
    num_rows: int
    """Measured kernels."""
    mean: float
    p90: float
    bias: float
    """Of the fit to all of them: mean and 90th percentile of the absolute error, mean signed."""
    held_out: float | None
    """Mean absolute error where the fit has not seen the group; None where there is one group."""


@dataclass(frozen=True, slots=True)
class Calibrated:
    """Constants found, how good they are, and the catalogue entries that hold them."""

    gpu: GPUSpec
    """The GPU as it stood in the catalogue."""
    constants: KernelConstants | None
    """The fitted ones; None where no kernels were measured."""
    errors: tuple[ErrorRow, ...]
    """By operator."""
    notes: tuple[str, ...]
    """What was taken from where, one line each."""
    document: Mapping[str, object]
    """The catalogue file."""

    def toml(self) -> str:
        """Return the catalogue file."""
        return to_toml(self.document)

    def as_text(self) -> str:
        """Return the report for people."""
        lines = [f"{self.gpu.name}", *self.notes, ""]
        if self.errors:
            rows = [["operator", "rows", "mean", "P90", "bias", "held out"]]
            for row in self.errors:
                known = [f"{row.mean:.1%}", f"{row.p90:.1%}", f"{row.bias:+.1%}"]
                known += [] if row.held_out is None else [f"{row.held_out:.1%}"]
                rows.append([row.operator, str(row.num_rows), *known])
            lines.append(aligned(rows))
        return "\n".join([*lines, "", self.toml()])

    def as_json(self) -> dict[str, Any]:
        """Return the report for programs."""
        return {
            "gpu": self.gpu.name,
            "notes": list(self.notes),
            "errors": [
                {field.name: getattr(row, field.name) for field in fields(row)}
                for row in self.errors
            ],
            "catalog": dict(self.document),
        }


def calibrated(
    data: Path, gpu_name: str, sets: Sequence[str] = (), engine_name: str = "vllm-0.19"
) -> Calibrated:
    """Fit the constants of a GPU to measured kernels, collectives and CPU costs.

    Parameters
    ----------
    data : Path
        CSV of ``docs/calibration.md``, a published set, or a folder of them.
    gpu_name : str
        Name in the catalogue.
    sets : sequence of str
        Published sets to take; by default those of the newest software that have this GPU.
    engine_name : str
        Engine whose CPU costs are written, where they were measured.

    Returns
    -------
    Calibrated

    Raises
    ------
    ConfigError
        If GPU or engine are not in the catalogue.
    DataError
        If the data cannot be read, or have nothing about this GPU.
    """
    gpu = catalog.gpu(gpu_name, key="--gpu")
    engine = catalog.engine(engine_name, key="--engine")
    notes: list[str] = []
    hosts: list[host.HostFit] = []
    if data.is_dir():
        folders = _folders(data, gpu, sets)
        kernels = joined([KERNELS[n](f, gpu.name) for n, f in folders.items() if n in KERNELS])
        links = joined([LINKS[n](f, gpu.name) for n, f in folders.items() if n in LINKS])
        hosts += _hosts(folders, gpu, engine_name)
        where = ", ".join(folders)
    else:
        if sets:
            raise DataError(f"--set chooses among published sets, but {data} is one file")
        kernels = plain_csv.read(data, gpu.name)
        links = kernels.of("all_reduce")
        launches = host.from_launches(kernels)
        hosts += [launches] if launches else []
        where = data.name
    known = kernels.take(~np.isin(kernels.operator, ("all_reduce", "all_gather", "send_recv")))
    known = known.take(known.operator != "issue")
    if not len(known) and not len(links) and not hosts:
        raise DataError(f"{data}: nothing about {gpu.name} in {where or 'it'}")
    document: dict[str, object] = {}
    constants: KernelConstants | None = None
    errors: tuple[ErrorRow, ...] = ()
    if len(known):
        constants, errors, kept = _fitted(known, gpu, where)
        if _values(constants) == _values(gpu.constants):
            raise DataError(
                f"{where}: too few kernels of {gpu.name} to fit anything; {LEAST_ROWS} of one "
                "class (GEMM, elementwise, attention) are the least"
            )
        notes += [f"fitted to {len(known)} kernels of {where}", kept]
    if constants is not None:
        name = f"{gpu.name} (measured)"
        experts = tuple(
            replace(kernel, name=f"{gpu.name} {kernel.name} (measured)", source=constants.source)
            if kernel not in gpu.constants.experts
            else kernel
            for kernel in constants.experts
        )
        constants = replace(constants, experts=experts)
        document["kernels"] = [kernels_row(name, gpu.arch, constants, [gpu.name])]
        own = [kernel for kernel in experts if kernel not in gpu.constants.experts]
        if own:
            document["experts"] = [experts_row(kernel) for kernel in own]
        document["gpu"] = [
            {
                "name": gpu.name,
                "like": gpu.name,
                # An entry in its place must repeat the short forms.
                "aliases": catalog.PACKAGED.table("gpu").rows[gpu.name].get("aliases", []),
                "kernels": name,
                "older_kernels": [],
                "source": gpu.source,
            }
        ]
    if len(links):
        row, line = _link(links, gpu, where)
        if row:
            document["link"] = [row]
        elif not document and not hosts:
            raise DataError(f"{where}: {line}")
        notes.append(line)
    if hosts:
        merged = {key: rounded(value) for found in hosts for key, value in found.keys}
        document["engine"] = [
            {
                "name": f"{engine.name} (measured)",
                "like": engine.name,
                **merged,
                "source": f"simcluster calibrate on {where}; the rest as {engine.name}",
            }
        ]
        notes += [found.line for found in hosts]
    return Calibrated(gpu, constants, errors, tuple(notes), document)


def _folders(data: Path, gpu: GPUSpec, sets: Sequence[str]) -> dict[str, Path]:
    """Published sets to read and where they are."""
    for name in sets:
        if name not in SETS:
            raise DataError(f"--set {name}: no such set. {nearest(name, SETS)}")
    there = {
        name: data if data.name == name else data / name
        for name in SETS
        if data.name == name or (data / name).is_dir()
    }
    missing = [name for name in sets if name not in there]
    if missing:
        raise DataError(f"{data}: no folder {missing[0]}")
    if not there:
        raise DataError(f"{data}: no published set in it; known are {', '.join(SETS)}")
    if sets:
        return {name: there[name] for name in sets}
    if len(there) == 1:
        return there
    having = [n for n in there if n in KERNELS and len(KERNELS[n](there[n], gpu.name))]
    newest = [name for name in having if name in _NEWEST]
    return {name: there[name] for name in newest or having}


def _hosts(folders: Mapping[str, Path], gpu: GPUSpec, engine_name: str) -> list[host.HostFit]:
    found = []
    if "vidur_cpu_overhead" in folders:
        found.append(host.from_cpu_times(folders["vidur_cpu_overhead"]))
    if "splitwise_perf" in folders:
        steps = splitwise_perf.read(folders["splitwise_perf"], gpu.name)
        if steps is not None:
            found.append(host.from_iterations(steps, gpu, catalog.engine(engine_name)))
    return found


def _fitted(
    rows: Samples, gpu: GPUSpec, where: str
) -> tuple[KernelConstants, tuple[ErrorRow, ...], str]:
    start = gpu.constants
    constants = fit(rows, gpu, start)
    seen, times = timed(from_memory(rows, gpu), gpu, constants)
    test, predicted = held_out(rows, gpu, start)
    unseen = {}
    if len(test):
        kept_rows, kept_times = _both_from_memory(test, predicted, gpu)
        unseen = {line[0]: line[2] for line in error_lines(kept_rows, kept_times)}
    errors = tuple(
        ErrorRow(title, num, mean, p90, bias, unseen.get(title))
        for title, num, mean, p90, bias in error_lines(seen, times)
    )
    same = [
        field.name
        for field in fields(constants)
        if field.name not in ("generation", "accuracy", "source")
        and getattr(start, field.name) == getattr(constants, field.name)
        and getattr(start, field.name) is not None
    ]
    note = "every constant was measured"
    if same:
        note = f"not measured, taken over ({start.accuracy}): {', '.join(same)}"
    if start.accuracy == "data-sheet":
        note += f"; {gpu.name} has no measured constants in the catalogue, only its data sheet and "
        note += "those of its generation"
    worst = "; ".join(f"{row.operator} {row.mean:.1%}" for row in errors)
    source = f"simcluster calibrate on {where}, {len(rows)} kernels; mean error {worst}"
    if same:
        source += f". Taken over: {', '.join(same)} ({start.source})"
    found = replace(constants, accuracy="measured", generation="", source=source)
    return found, errors, note


def _values(constants: KernelConstants) -> KernelConstants:
    """Return the constants without what is said about them."""
    return replace(constants, generation="", accuracy="", source="")


def _both_from_memory(rows: Samples, times: Any, gpu: GPUSpec) -> tuple[Samples, Any]:
    """Rows that a served model could meet, and their times."""
    tagged = replace(rows, numbers={**rows.numbers, "time": times})
    kept = from_memory(tagged, gpu)
    known = ~np.isnan(kept.numbers["time"])
    kept = kept.take(known)
    return kept, kept.numbers["time"]


def _link(rows: Samples, gpu: GPUSpec, where: str) -> tuple[dict[str, object], str]:
    link = catalog.link(gpu.fabric)
    sizes = fit_link(rows, link)
    if not sizes:
        return {}, "too few all-reduces to fit (three of 4 kB to 64 MiB are needed)"
    row: dict[str, object] = {
        "name": f"{link.name} (measured)",
        "like": link.name,
        "allreduce": [
            [size, rounded(latency_s / US), rounded(share)] for size, latency_s, share in sizes
        ],
        "source": f"All-reduce: simcluster calibrate on {where}; the rest as {link.name}",
    }
    found = ", ".join(f"{size} GPUs {lat / US:.1f} us, {eff:.3f}" for size, lat, eff in sizes)
    return row, f"all-reduce over {link.name}, latency and share of bandwidth: {found}"
