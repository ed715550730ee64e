"""All-reduces of the catalogue's ``links.toml`` from the published tables of collectives.

``python -m simcluster.fidelity.calibrate.links DATA_DIR`` prints the rows of each link that was
measured: the engine's own kernels by size of the message, and NCCL as its two protocols.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np

from simcluster import catalog
from simcluster.catalog.specs import AllReduceTerms, LinkSpec
from simcluster.fidelity.calibrate.fit import least_squares
from simcluster.fidelity.calibrate.readers import aic_ops
from simcluster.fidelity.calibrate.readers.samples import Samples
from simcluster.fidelity.calibrate.report import rounded
from simcluster.units import US, FloatArray

_KIB: Final = 1024.0
_SMALLEST: Final = 2048.0
_LARGEST: Final = 2.0**28
_CUTS: Final = (2.0**17, 2.0**19, 2.0**21)
"""First guesses of the size from which on NCCL's second protocol is the faster one (bytes)."""
_MATTERS: Final = 1.02
"""A second protocol that is not this much faster for large messages is left out."""
OWN_BELOW_KIB: Final[dict[str, dict[int, tuple[int, ...]]]] = {
    "nvlink3": {2: (8192,), 4: (512, 8192), 8: (256, 8192)},
    "nvlink4": {2: (8192,), 4: (512, 8192), 8: (256, 8192)},
    "nvlink5": {2: (2048,), 4: (512, 32768), 8: (256, 1024, 131072)},
    "pcie4-l40s": {2: (8192,)},
}
"""Sizes below which vLLM takes a kernel of its own, by link and GPUs.

Below the first each GPU reads the tensors of the others at once (csrc/custom_all_reduce.cuh), below
8 MiB in two stages (`max_size` of CustomAllreduce). On Blackwell that ends at 2 MiB, and kernels
over symmetric memory follow. Over PCIe there are pairs alone, and none without peer-to-peer.
"""
_GPUS: Final = {
    "nvlink3": "A100-80GB SXM",
    "nvlink4": "H100 SXM",
    "nvlink5": "B200 SXM",
    "pcie4-l40s": "L40S",
    "pcie5-staged": "RTX PRO 6000 Blackwell Server",
    "pcie5": "RTX PRO 6000 Blackwell Server",
}
_IN_GRAPH: Final = ("pcie4-l40s", "pcie5-staged")
"""Links whose library terms are fitted to what the engine's graph reached, where it was timed."""


def sent_and_time(rows: Samples, link: LinkSpec) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Return sizes of messages (bytes), their ring traffic at line rate and measured times (s)."""
    message = rows.bytes * rows["m"] * rows["n"]
    keep = (message >= _SMALLEST) & (message <= _LARGEST)
    tp = rows["tp"][keep]
    sent = 2.0 * (tp - 1.0) / tp * message[keep] / link.bandwidth
    order = np.argsort(message[keep])
    return message[keep][order], sent[order], rows.time_s[keep][order]


def fit_own(rows: Samples, link: LinkSpec, below_kib: Sequence[int]) -> list[AllReduceTerms]:
    """Fit one line to the all-reduces of one world size below each of the sizes (KiB)."""
    message, sent, time = sent_and_time(rows, link)
    found, low = [], 0.0
    for kib in below_kib:
        here = (message >= low) & (message < kib * _KIB)
        latency_s, share = _lines(sent[here], time[here], [(time[here].min(), 0.5)])[0]
        found.append(
            AllReduceTerms(
                tp_size=int(rows["tp"][0]),
                latency_s=latency_s,
                efficiency=share,
                below_bytes=kib * _KIB,
            )
        )
        low = kib * _KIB
    return found


def fit_library(rows: Samples, link: LinkSpec) -> list[AllReduceTerms]:
    """Fit the two protocols of the library to the all-reduces of one world size."""
    message, sent, time = sent_and_time(rows, link)
    fits = []
    for cut in _CUTS:
        last = int(np.searchsorted(message, cut))
        starts = [
            (time.min(), min(0.9, float(sent[last] / time[last]))),
            (3.0 * time.min(), min(0.9, float(sent[-1] / time[-1]))),
        ]
        lines = _lines(sent, time, starts)
        error = np.mean(np.abs(_fastest(sent, lines) / time - 1.0))
        fits.append((float(error), lines))
    _, lines = min(fits)
    (first_s, first), (second_s, second) = sorted(lines)
    pairs = [(first_s, first), (second_s, second)][: 1 + (second > _MATTERS * first)]
    return [
        AllReduceTerms(tp_size=int(rows["tp"][0]), latency_s=latency_s, efficiency=share)
        for latency_s, share in pairs
    ]


def _fastest(sent: FloatArray, lines: Sequence[tuple[float, float]]) -> FloatArray:
    times: FloatArray = np.min([latency + sent / share for latency, share in lines], axis=0)
    return times


def _lines(
    sent: FloatArray, time: FloatArray, starts: Sequence[tuple[float, float]]
) -> list[tuple[float, float]]:
    """Latencies (s) and shares of bandwidth whose fastest line is nearest to the times."""

    def pairs(x: FloatArray) -> list[tuple[float, float]]:
        return [(float(a) * US, float(b)) for a, b in x.reshape(-1, 2)]

    x = least_squares(
        lambda x: np.log(_fastest(sent, pairs(x)) / time),
        [value for latency_s, share in starts for value in (latency_s / US, share)],
        [0.1, 0.005] * len(starts),
        [1000.0, 1.0] * len(starts),
    )
    return pairs(x)


def terms(folder: Path, link_name: str) -> tuple[list[AllReduceTerms], list[AllReduceTerms]]:
    """Return own and library terms of a link of the catalogue from the tables in `folder`."""
    link, system = catalog.link(link_name), aic_ops.GPUS[_GPUS[link_name]]
    graph, nccl = aic_ops.read_custom(folder, system), aic_ops.read_nccl(folder, system)
    own: list[AllReduceTerms] = []
    library: list[AllReduceTerms] = []
    for size in np.unique(nccl["tp"]):
        in_graph = graph.take(graph["tp"] == size)
        limits = OWN_BELOW_KIB.get(link_name, {}).get(int(size), ())
        if limits:
            own += fit_own(in_graph, link, limits)
        used = (
            in_graph if link_name in _IN_GRAPH and len(in_graph) else nccl.take(nccl["tp"] == size)
        )
        library += fit_library(used, link)
    return own, library


def main(arguments: Sequence[str]) -> int:
    """Print the rows of every measured link for the folder of measured sets in `arguments`."""
    if len(arguments) != 1:
        sys.stderr.write("usage: python -m simcluster.fidelity.calibrate.links DATA_DIR\n")
        return 2
    for name in _GPUS:
        own, library = terms(Path(arguments[0]) / "aic_ops", name)
        rows = [
            [t.tp_size, int(t.below_bytes / _KIB), rounded(t.latency_s / US), rounded(t.efficiency)]
            for t in own
        ]
        sys.stdout.write(f"{name}\nown_allreduce = {rows}\n")
        pairs = [[t.tp_size, rounded(t.latency_s / US), rounded(t.efficiency)] for t in library]
        sys.stdout.write(f"allreduce = {pairs}\n\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
