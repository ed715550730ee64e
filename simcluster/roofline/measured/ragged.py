"""Interpolation among measured points: along axes in logarithms, and among the nearest shapes.

What is interpolated is the measured time over the law's. So a measured call takes what was
measured, between two measured calls the law gives the shape, and beyond the last one it goes on
from there.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from math import exp, inf, log, log2
from typing import Final, NamedTuple

_NEAREST: Final = 4
"""Shapes that stand in together for one that was not measured."""


class Point(NamedTuple):
    """A measured call."""

    shape: tuple[float, ...]
    """What kernels differ in, such as the widths of a multiplication; all above 0."""
    place: tuple[float, ...]
    """What a run varies, such as the rows; all above 0."""
    ratio: float
    """Measured over law's time, above 0."""


class _Axis(NamedTuple):
    """Values of one axis, rising, and what lies at each: an axis more, or the logarithm."""

    logs: list[float]
    below: list[_Axis | float]


class Ragged:
    """Points of equal kernels: a grid for each shape, which need not be full.

    Parameters
    ----------
    points : iterable of Point
        At least one; all with as many axes.

    Examples
    --------
    Half way in logarithms between two measured numbers of rows, and beyond them:

    >>> table = Ragged([Point((512.0,), (16.0,), 1.0), Point((512.0,), (64.0,), 4.0)])
    >>> [round(table.ratio((512.0,), (m,)), 6) for m in (16.0, 32.0, 64.0, 999.0)]
    [1.0, 2.0, 4.0, 4.0]
    """

    def __init__(self, points: Iterable[Point]) -> None:
        by_shape: dict[tuple[float, ...], list[Point]] = {}
        for point in points:
            by_shape.setdefault(point.shape, []).append(point)
        self._grids = {shape: _axis(own, 0) for shape, own in by_shape.items()}
        self._points = by_shape
        self._near: dict[tuple[float, ...], list[tuple[float, tuple[float, ...]]]] = {}
        self._tops: dict[tuple[tuple[float, ...], int], float] = {}

    def __len__(self) -> int:
        """Points in all."""
        return sum(map(len, self._points.values()))

    def ratio(self, shape: tuple[float, ...], place: Sequence[float]) -> float:
        """Measured over law's time of a call; of the nearest shapes where its own has none."""
        logs = [log(value) for value in place]
        total = 0.0
        for weight, known in self._nearest(shape):
            total += weight * _along(self._grids[known], logs, 0)
        return exp(total)

    def values(self, shape: tuple[float, ...], axis: int) -> list[float]:
        """Values of an axis that were measured of the shapes that stand for `shape`, rising."""
        near = self.stand_ins(shape)
        return sorted({point.place[axis] for known in near for point in self._points[known]})

    @property
    def shapes(self) -> list[tuple[float, ...]]:
        """Measured shapes, in the order of the points."""
        return list(self._points)

    def own_values(self, known: tuple[float, ...], axis: int) -> list[float]:
        """Values of an axis that were measured of a measured shape, rising."""
        return sorted({point.place[axis] for point in self._points[known]})

    def shortest(self, known: tuple[float, ...], axis: int) -> tuple[float, tuple[float, ...]]:
        """Least of the last values of an axis of a measured shape, and the place that it ends at.

        Behind the last value of the axis the place is free: of a grid that is not full the values
        of the axes before it decide how far it goes.
        """
        last: dict[tuple[float, ...], float] = {}
        for point in self._points[known]:
            before = point.place[:axis]
            last[before] = max(last.get(before, 0.0), point.place[axis])
        value, before = min((value, before) for before, value in last.items())
        return value, before

    def stand_ins(self, shape: tuple[float, ...]) -> list[tuple[float, ...]]:
        """Measured shapes that stand for `shape`: itself, or the nearest ones."""
        return [known for _, known in self._nearest(shape)]

    def top(self, shape: tuple[float, ...], axis: int) -> float:
        """Value of an axis that all shapes which stand for `shape` were measured up to."""
        key = (shape, axis)
        if key not in self._tops:
            self._tops[key] = min(self.own_values(k, axis)[-1] for k in self.stand_ins(shape))
        return self._tops[key]

    def stand_in(self, shape: tuple[float, ...], allowed: Sequence[tuple[float, ...]]) -> None:
        """Let the nearest of `allowed`, which were measured, stand for `shape`, which was not."""
        self._near[shape] = _weighed(shape, allowed)

    def distance(
        self, shape: tuple[float, ...], among: Iterable[tuple[float, ...]] | None = None
    ) -> float:
        """How many times larger or smaller a side of `shape` is than of the nearest measured.

        `among` are the measured shapes that count, by default all; infinite if there are none.
        """
        return min(
            (
                max(max(a / b, b / a) for a, b in zip(shape, known, strict=True))
                for known in (self._grids if among is None else among)
            ),
            default=inf,
        )

    def _nearest(self, shape: tuple[float, ...]) -> list[tuple[float, tuple[float, ...]]]:
        """Shapes that stand for `shape`, with weights whose sum is 1."""
        found = self._near.get(shape)
        if found is None:
            known = shape in self._grids
            found = self._near[shape] = [(1.0, shape)] if known else _weighed(shape, self.shapes)
        return found


def _weighed(
    shape: tuple[float, ...], among: Iterable[tuple[float, ...]]
) -> list[tuple[float, tuple[float, ...]]]:
    """Return the nearest shapes with weights whose sum is 1: inverse squares of the distance."""
    away = sorted(
        (sum(log2(a / b) ** 2 for a, b in zip(shape, known, strict=True)), known) for known in among
    )[:_NEAREST]
    total = sum(1.0 / square for square, _ in away)
    return [(1.0 / square / total, known) for square, known in away]


def _axis(points: Sequence[Point], depth: int) -> _Axis:
    groups: dict[float, list[Point]] = {}
    for point in points:
        groups.setdefault(point.place[depth], []).append(point)
    last = depth + 1 == len(points[0].place)
    values = sorted(groups)
    below: list[_Axis | float] = [
        _mean_log(groups[value]) if last else _axis(groups[value], depth + 1) for value in values
    ]
    return _Axis([log(value) for value in values], below)


def _mean_log(points: Sequence[Point]) -> float:
    return sum(log(point.ratio) for point in points) / len(points)


def _along(axis: _Axis, logs: Sequence[float], depth: int) -> float:
    """Logarithm of the ratio at `logs`; the last value's beyond an end of an axis."""
    at = logs[depth]
    if at <= axis.logs[0]:
        return _value(axis.below[0], logs, depth)
    if at >= axis.logs[-1]:
        return _value(axis.below[-1], logs, depth)
    above = bisect_left(axis.logs, at)
    high = _value(axis.below[above], logs, depth)
    if axis.logs[above] == at:
        return high
    low = _value(axis.below[above - 1], logs, depth)
    share = (at - axis.logs[above - 1]) / (axis.logs[above] - axis.logs[above - 1])
    return low + share * (high - low)


def _value(below: _Axis | float, logs: Sequence[float], depth: int) -> float:
    return below if isinstance(below, float) else _along(below, logs, depth + 1)
