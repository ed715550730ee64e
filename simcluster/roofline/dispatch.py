"""CPU dispatch and GPU execution as a two-machine flow shop, in closed form.

One CPU thread issues the kernels of a step, kernel j taking D_j; the GPU runs them in order,
kernel j taking T_j and not before its issue has ended. The last kernel ends at ``max over j of
(D_1 + .. + D_j + T_j + .. + T_n)`` (the longest path). Inside a run of equal layers the bracket
is linear in the layer, so that only the first and the last layer can hold the maximum.

The times of attention are left open: the end is a maximum of a few lines ``const + n_0 A_0 + n_1
A_1 + ..`` in the attention time A_k of a layer with the k-th kind of mixer.

All times here are ticks of the grid, as floats that hold whole numbers: sums are exact.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class TickRun(NamedTuple):
    """A run of equal layers in ticks."""

    run_ticks: tuple[float, ...]
    """GPU time of each kernel of a layer; 0 in the place of attention."""
    attention: int
    """Position of the attention kernel; -1 for none."""
    kind: int
    """Which kind of mixer it is of, from 0."""
    repeat: int
    """How many layers."""


class Line(NamedTuple):
    """``const + counts[0] x A_0 + counts[1] x A_1 + ..`` (ticks): a path through the flow shop."""

    const: float
    counts: tuple[int, ...]


def graph_line(runs: tuple[TickRun, ...], issue_ticks: float, num_kinds: int = 1) -> Line:
    """Return the end of a captured step: one issue, then the kernels back to back.

    Parameters
    ----------
    runs : tuple of TickRun
        The kernels in issue order.
    issue_ticks : float
        CPU time to launch the step (ticks).
    num_kinds : int
        Kinds of mixers.
    """
    line = Line(
        issue_ticks + sum([run.repeat * sum(run.run_ticks, 0.0) for run in runs], 0.0),
        (0,) * num_kinds,
    )
    for run in runs:
        line = _through(line, run, run.repeat, line.const)
    return line


def eager_lines(runs: tuple[TickRun, ...], issue_ticks: float, num_kinds: int = 1) -> list[Line]:
    """Return the lines whose maximum is the end of a step issued kernel by kernel.

    Parameters
    ----------
    runs : tuple of TickRun
        The kernels in issue order.
    issue_ticks : float
        CPU time to issue one kernel (ticks).
    num_kinds : int
        Kinds of mixers.
    """
    lines: list[Line] = []
    issued = issue_ticks * sum([len(run.run_ticks) * run.repeat for run in runs])
    after = Line(0.0, (0,) * num_kinds)
    for run in reversed(runs):
        layer_issue = issue_ticks * len(run.run_ticks)
        layer_run = sum(run.run_ticks, 0.0)
        issued -= layer_issue * run.repeat
        upto, beyond = _best_in_layer(run, issue_ticks)
        for layer in (0, run.repeat - 1) if run.repeat > 1 else (0,):
            later = run.repeat - 1 - layer
            base = issued + layer * layer_issue + after.const + later * layer_run
            if upto is not None:
                lines.append(_through(after, run, later + 1, base + upto))
            if beyond is not None:
                lines.append(_through(after, run, later, base + beyond))
        after = _through(after, run, run.repeat, after.const + run.repeat * layer_run)
    return lines


def envelope(lines: list[Line], least: Sequence[float]) -> tuple[Line, ...]:
    """Return the lines that can be the maximum where every A_k is at least ``least[k]``.

    A line goes if another rises at least as fast in all of them and is not below it at the corner.
    """
    at_corner = [
        line.const + sum([n * ticks for n, ticks in zip(line.counts, least, strict=True)], 0.0)
        for line in lines
    ]
    order = sorted(range(len(lines)), key=lambda i: (sum(lines[i].counts), at_corner[i]))
    kept: list[int] = []
    for i in reversed(order):
        if not any(
            at_corner[j] >= at_corner[i]
            and all(a >= b for a, b in zip(lines[j].counts, lines[i].counts, strict=True))
            for j in kept
        ):
            kept.append(i)
    return tuple(lines[i] for i in kept)


def _best_in_layer(run: TickRun, issue_ticks: float) -> tuple[float | None, float | None]:
    """Best ``D_1 + .. + D_i + T_i + .. + T_n`` of a layer, i up to attention and beyond it."""
    upto: float | None = None
    beyond: float | None = None
    issued, rest = 0.0, sum(run.run_ticks, 0.0)
    for i, ticks in enumerate(run.run_ticks):
        issued += issue_ticks
        value = issued + rest
        if i <= run.attention:
            upto = value if upto is None or value > upto else upto
        else:
            beyond = value if beyond is None or value > beyond else beyond
        rest -= ticks
    return upto, beyond


def _through(after: Line, run: TickRun, num_layers: int, const: float) -> Line:
    """`after` with the attention of `num_layers` layers of `run` before it."""
    counts = after.counts
    if run.attention >= 0:
        kind = run.kind
        counts = (*counts[:kind], counts[kind] + num_layers, *counts[kind + 1 :])
    return Line(const, counts)
