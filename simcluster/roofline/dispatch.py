"""CPU dispatch and GPU execution as a two-machine flow shop, in closed form.

One CPU thread issues the kernels of a step, kernel j taking D_j; the GPU runs them in order,
kernel j taking T_j and not before its issue has ended. The last kernel ends at ``max over j of
(D_1 + .. + D_j + T_j + .. + T_n)`` (the longest path). Inside a run of equal layers the bracket
is linear in the layer, so that only the first and the last layer can hold the maximum.

The time of attention is left open: the end is a maximum of a few lines ``const + full x A +
window x W`` in the attention times A and W of a layer without and with a sliding window.

All times here are ticks of the grid, as floats that hold whole numbers: sums are exact.
"""

from __future__ import annotations

from typing import NamedTuple


class TickRun(NamedTuple):
    """A run of equal layers in ticks.

    Attributes
    ----------
    run_ticks : tuple of float
        GPU time of each kernel of a layer; 0 in the place of attention.
    attention : int
        Position of the attention kernel; -1 for none.
    window : bool
        That kernel has the sliding window.
    repeat : int
        How many layers.
    """

    run_ticks: tuple[float, ...]
    attention: int
    window: bool
    repeat: int


class Line(NamedTuple):
    """``const + full x A + window x W`` (ticks): one path through the flow shop."""

    const: float
    full: int
    window: int


def graph_line(runs: tuple[TickRun, ...], issue_ticks: float) -> Line:
    """Return the end of a captured step: one issue, then the kernels back to back."""
    const = issue_ticks + sum(run.repeat * sum(run.run_ticks) for run in runs)
    attending = [run for run in runs if run.attention >= 0]
    return Line(
        const,
        sum(run.repeat for run in attending if not run.window),
        sum(run.repeat for run in attending if run.window),
    )


def eager_lines(runs: tuple[TickRun, ...], issue_ticks: float) -> list[Line]:
    """Return the lines whose maximum is the end of a step issued kernel by kernel.

    Parameters
    ----------
    runs : tuple of TickRun
        The kernels in issue order.
    issue_ticks : float
        CPU time to issue one kernel (ticks).
    """
    lines: list[Line] = []
    issued = issue_ticks * sum(len(run.run_ticks) * run.repeat for run in runs)
    after = Line(0.0, 0, 0)
    for run in reversed(runs):
        layer_issue = issue_ticks * len(run.run_ticks)
        layer_run = sum(run.run_ticks)
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


def envelope(lines: list[Line], least_full: float, least_window: float) -> tuple[Line, ...]:
    """Return the lines that can be the maximum for some A >= `least_full`, W >= `least_window`.

    A line goes if another rises at least as fast in both and is not below it at the corner.
    """
    at_corner = [line.const + line.full * least_full + line.window * least_window for line in lines]
    order = sorted(range(len(lines)), key=lambda i: (lines[i].full + lines[i].window, at_corner[i]))
    kept: list[int] = []
    for i in reversed(order):
        if not any(
            lines[j].full >= lines[i].full
            and lines[j].window >= lines[i].window
            and at_corner[j] >= at_corner[i]
            for j in kept
        ):
            kept.append(i)
    return tuple(lines[i] for i in kept)


def _best_in_layer(run: TickRun, issue_ticks: float) -> tuple[float | None, float | None]:
    """Best ``D_1 + .. + D_i + T_i + .. + T_n`` of a layer, i up to attention and beyond it."""
    upto: float | None = None
    beyond: float | None = None
    issued, rest = 0.0, sum(run.run_ticks)
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
    if run.attention < 0:
        return Line(const, after.full, after.window)
    if run.window:
        return Line(const, after.full, after.window + num_layers)
    return Line(const, after.full + num_layers, after.window)
