"""Pareto fronts: which points no other beats, and how much they dominate. All is minimised."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from simcluster.units import FloatArray, IntArray


def undominated(points: FloatArray) -> IntArray:
    """Return the rows of `points` that no other row beats, in lexical order; of equals the first.

    Parameters
    ----------
    points : ndarray of float64
        Shape ``(n, num_objectives)``, each to be small.
    """
    order = np.lexsort(points.T[::-1])
    kept: list[int] = []
    front = np.empty((0, points.shape[1]))
    for row in order.tolist():
        point = points[row]
        if not np.isfinite(point).all():
            continue
        if len(front) and bool((front <= point).all(axis=1).any()):
            continue
        kept.append(row)
        front = np.vstack([front, point])
    return np.array(kept, dtype=np.int64)


def hypervolume(points: FloatArray, reference: npt.ArrayLike) -> float:
    """Return the volume that `points` dominate below `reference`, in one to three dimensions.

    Notes
    -----
    By slices: sorted by the last objective, the volume is the sum over slices of the area that the
    points up to there dominate.
    """
    corner = np.asarray(reference, dtype=np.float64)
    inside = points[(points < corner).all(axis=1)]
    if not len(inside):
        return 0.0
    if points.shape[1] == 1:
        return float(corner[0] - inside.min())
    inside = inside[np.argsort(inside[:, -1], kind="stable")]
    ends = np.append(inside[1:, -1], corner[-1])
    total = 0.0
    for k, (start, end) in enumerate(zip(inside[:, -1], ends, strict=True)):
        if end > start:
            total += (end - start) * hypervolume(inside[: k + 1, :-1], corner[:-1])
    return total
