"""Many runs of one scenario: every strategy at every rate with every seed, on all cores."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from math import inf
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from simcluster.engine.groups.cluster import Cluster
from simcluster.engine.instance import Instance
from simcluster.errors import ConfigError
from simcluster.frames.itl import GapsInParts
from simcluster.frames.metrics import SweepRow, median, summarise
from simcluster.frames.packed import pack
from simcluster.roofline.memory import kv_blocks
from simcluster.runs.cell import Cell
from simcluster.runs.executor import Runner
from simcluster.runs.fold import missing
from simcluster.runs.folder import (
    FORMATS,
    Comparison,
    Encoded,
    Format,
    Outcome,
    Unfinished,
    cells_of,
    read,
    writing,
)
from simcluster.runs.result import Result
from simcluster.runs.simulate import simulate, workload_of
from simcluster.scenario import arguments
from simcluster.scenario.scenario import Scenario, refuse_other
from simcluster.strategies.base import Strategy, dry_run

Progress = Callable[[int, int, float], None]
"""Called with the number of finished cells, of all cells, and the share of the work that is done.

Work is what was left to do at the start, by the number of offered requests.
"""


def cells(scenario: Scenario) -> list[Cell]:
    """Return the runs of a comparison: strategies, then rates, then seeds.

    All strategies meet the same requests: those drawn from the seed.
    """
    rates = scenario.rates_rps or (None,)
    return [
        Cell(strategy.name, rate, seed)
        for strategy in scenario.strategies
        for rate in rates
        for seed in scenario.run.seeds
    ]


def choose(scenario: Scenario, strategy: str | None, rate_rps: float | None) -> Cell:
    """Return the run that a person means who names no more than this.

    Parameters
    ----------
    scenario : Scenario
        What to choose from.
    strategy : str or None
        Name of the strategy; None for the first.
    rate_rps : float or None
        Offered rate (requests/s); None for ``workload.rate_rps``, else the arrivals' own (of a
        trace, schedule or clients), else the first of the sweep.

    Raises
    ------
    ConfigError
        If there is no strategy of that name.
    """
    name = scenario.strategy(strategy).name
    if rate_rps is None:
        rate_rps = scenario.default_rate_rps
    return Cell(name, rate_rps, scenario.run.seeds[0])


def summary(scenario: Scenario, result: Result) -> SweepRow:
    """Return the sweep row of one run of `scenario`."""
    if result.summary is not None:
        return result.summary.row(
            strategy=result.strategy,
            rate_rps=result.rate_rps,
            seed=result.seed,
            num_gpus=result.num_gpus,
            instances=result.columns["instances"],
        )
    return summarise(
        result.columns["requests"],
        slo=scenario.environment.slo,
        run=scenario.run,
        strategy=result.strategy,
        rate_rps=result.rate_rps,
        seed=result.seed,
        num_gpus=result.num_gpus,
        instances=result.columns["instances"],
        gaps=GapsInParts(result.columns, scenario.environment),
    )


def compare(
    scenario: Scenario,
    *,
    jobs: int | None = None,
    progress: Progress | None = None,
    out: str | Path | None = None,
    fmt: Format = "parquet",
    replace: bool = False,
    dask: str | None = None,
) -> Comparison:
    """Run every strategy at every rate with every seed.

    Parameters
    ----------
    scenario : Scenario
        From `scenario.file.load`.
    jobs : int, optional
        Processes; default: one per core. 1 runs in this process.
    progress : callable, optional
        Called after each cell (`Progress`).
    out : str or Path, optional
        Result folder. Each finished cell is written there at once, and its frames are not kept in
        memory. After an interrupt, a crash or a kill the same call goes on where it stopped; after
        a change of one strategy its cells are run and the others used again.
    fmt : str
        ``"parquet"`` or ``"csv"``.
    replace : bool
        Put these results in the place of another scenario's in `out`, which is refused otherwise.
    dask : str, optional
        Address of a Dask scheduler, whose workers do the runs; they need no access to `out`.

    Raises
    ------
    ConfigError
        If there are no latency targets, a strategy does not fit the machines, or an argument cannot
        be meant.
    DataError
        If `out` cannot be written or holds something else, or no Dask scheduler answers.
    WorkerError
        If a process or a cluster that does the runs is lost (`executor.outcomes`).
    """
    refuse_other(scenario)
    arguments.one_of("fmt", fmt, FORMATS, "a format of frames")
    check(scenario)
    slo = scenario.environment.slo
    if not slo.has_targets:
        remedy = "Add slo.ttft_s, slo.tpot_s, slo.itl_s or slo.e2el_s."
        raise ConfigError("slo", None, "a comparison needs at least one latency target", remedy)
    todo = cells(scenario)
    with writing(out, scenario, todo, fmt, replace=replace) if out else nullcontext() as folder:
        # Highest rates first: they take longest, and short runs fill the gaps at the end.
        order = sorted(todo, key=lambda cell: -(cell.rate_rps or 0.0))
        came = Runner(jobs, dask).each(
            functools.partial(
                _run,
                folder=None if dask else folder,
                travels_as=(fmt if folder else "packed") if dask else None,
            ),
            [(scenario, cell) for cell in order],
            folder,
            _told(scenario, order, folder, progress),
        )
        by_cell = dict(zip(order, came, strict=True))
        rows = [by_cell[cell][0] for cell in todo]
        if folder:
            folder.write_sweep(rows)
    if out:
        return dataclasses.replace(read(out), _scenario=scenario)
    frames = [by_cell[cell][1] for cell in todo]
    kept = {c: f for c, f in zip(cells_of(rows), frames, strict=True) if not isinstance(f, Encoded)}
    return Comparison(dict(scenario.document), rows, kept, scenario)


def _told(
    scenario: Scenario, cells: Sequence[Cell], folder: Unfinished | None, progress: Progress | None
) -> Callable[[int, Outcome], None] | None:
    """Return what hears of each finished cell, by its number, and tells `progress`."""
    if progress is None:
        return None
    by_time = scenario.workload.duration_s is not None
    left = {
        cell: (cell.rate_rps or 1.0) if by_time else 1.0
        for cell in cells
        if folder is None or not folder.has(cell)
    }
    total, numbers = sum(left.values()), itertools.count(1)

    def told(number: int, _: Outcome) -> None:
        left.pop(cells[number], None)
        share = 1.0 - sum(left.values()) / total if left else 1.0
        progress(next(numbers), len(cells), share)

    return told


def run(scenario: Scenario, cell: Cell) -> Comparison:
    """Run one cell; the result is a comparison of one."""
    result = simulate_cell(scenario, cell)
    row, columns = summary(scenario, result), result.columns
    return Comparison(dict(scenario.document), [row], {cells_of([row])[0]: columns}, scenario)


def check(scenario: Scenario) -> None:
    """Build every strategy on idle machines, so that one that does not fit is refused at once.

    Raises
    ------
    ConfigError
        If a strategy does not fit the machines.
    """
    for strategy in scenario.strategies:
        dry_run(scenario.environment, strategy, resolution=scenario.run.resolution)


def warnings_of(scenario: Scenario, comparison: Comparison) -> list[str]:
    """Return one line for each target and limit of a strategy that the median request cannot meet.

    Targets below what it takes alone, memory that the GPUs have not, and a KV buffer inside the
    steps that is smaller than its KV cache. Of summaries first one line that says what they lack.
    """
    cells, lines = comparison.cells(), []
    if scenario.run.recorder == "summary":
        rows = comparison.rows
        lines.append(missing(all(row["itl_s_mean"] == row["itl_s_mean"] for row in rows)))
    lengths = _lengths(scenario, comparison, cells[0])
    if not len(lengths[0]):
        return lines
    prompt, output = (int(median(tokens)) for tokens in lengths)
    for name in dict.fromkeys(cell.strategy for cell in cells):
        strategy = scenario.strategy(name)
        cluster = dry_run(scenario.environment, strategy)
        found = [*_missed_alone(cluster, prompt, output), *_memory(cluster, strategy, prompt)]
        lines += [f"strategy {name!r}: {line}" for line in found]
    return lines


def _lengths(
    scenario: Scenario, comparison: Comparison, cell: Cell
) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Return the prompts and outputs (tokens) of the requests that arrived in a run.

    Shape ``(num_requests,)`` each. A summary keeps none: they are drawn again, which takes little
    beside the run.
    """
    if scenario.run.recorder != "summary":
        frame = comparison.frames(cell)["requests"]
        return frame["prompt_len"], frame["output_len"]
    workload, end_s = workload_of(scenario, cell), scenario.run.max_time_s
    arrived = slice(workload.num_requests)
    if end_s is not None:
        arrived = slice(int(np.searchsorted(workload.arrival_s, end_s, side="right")))
    return workload.prompt_len[arrived], workload.output_len[arrived]


def _missed_alone(cluster: Cluster, prompt_len: int, output_len: int) -> Iterator[str]:
    """Say which targets the median request misses when it is alone."""
    environment = cluster.environment
    slo, decode = environment.slo.loosest(), cluster.instances[-1]
    first_s = cluster.instances[0].prefill_s(prompt_len)
    first_s += environment.engine.front_end_of(prompt_len)
    step_s = total_s = 0.0
    if output_len > 1 and isinstance(decode, Instance):
        step_s = decode.decode_s(1, prompt_len + 1)
        total_s = first_s + (output_len - 1) * step_s
    for key, least_s, what in (
        ("ttft_s", first_s, f"that the median prompt of {prompt_len} tokens takes alone"),
        ("tpot_s", step_s, "of a decode step of the median request alone"),
        ("itl_s", step_s, "of a decode step of the median request alone"),
        ("e2el_s", max(first_s, total_s), "that the median request takes alone"),
    ):
        target_s = getattr(slo, key)
        if target_s is not None and least_s > target_s:
            yield (
                f"slo.{key} = {target_s:g} s is below the {least_s:.3g} s {what}: half of the "
                "requests must miss it."
            )
    if output_len == 1 and (slo.tpot_s is not None or slo.itl_s is not None):
        yield "targets on TPOT and ITL say nothing of requests with one output token, the median."


def _memory(cluster: Cluster, strategy: Strategy, prompt_len: int) -> Iterator[str]:
    """Say where KV blocks are more than fit, or a buffer holds less than the median prompt."""
    environment, first = cluster.environment, cluster.placed[0]
    engine, given = environment.engine, getattr(strategy, "num_kv_blocks", None)
    if given is not None:
        kinds = {(placed.layout, placed.pp_size) for placed in cluster.placed}
        try:
            fit = min(
                kv_blocks(
                    environment.model,
                    environment.cluster.gpu,
                    engine,
                    layout.tp_size,
                    pp_size,
                    key="tp_size",
                    layout=layout,
                )
                for layout, pp_size in kinds
            )
        except ConfigError:
            fit = 0
        if given > fit:
            yield f"num_kv_blocks = {given} is more than the {fit} blocks that fit in the memory."
    kv_bytes = environment.model.sequence_kv().num_bytes(prompt_len)
    puts = isinstance(first.instance, Instance) and first.instance.hooks.put is not None
    held = first.tp_size * (engine.kv_buffer_bytes or inf)
    if puts and held < kv_bytes:
        yield (
            f"engine.kv_buffer_bytes = {engine.kv_buffer_bytes:g} is less than the KV cache of the "
            f"median prompt on a rank, {kv_bytes / first.tp_size:.0f} bytes: an instance has one "
            "prompt at a time in it."
        )


def simulate_cell(scenario: Scenario, cell: Cell) -> Result:
    """Simulate one cell.

    Raises
    ------
    ConfigError
        As `simulate` does, or if it would take too many events kernel by kernel.
    """
    if scenario.run.resolution == "kernel":
        _refuse_too_many_kernels(scenario, cell)
    return simulate(scenario, strategy=cell.strategy, rate_rps=cell.rate_rps, seed=cell.seed)


def _run(
    scenario: Scenario,
    cell: Cell,
    folder: Unfinished | None,
    travels_as: Format | Literal["packed"] | None = None,
) -> Outcome:
    """Run one cell; its frames go into `folder` if there is one, else back to the caller.

    On their way to another machine they are packed, or compressed files of a format that need not
    be made again there.
    """
    result = simulate_cell(scenario, cell)
    row = summary(scenario, result)
    if folder is not None:
        folder.write(cell, result.columns, row)
        return row, {}
    if travels_as == "packed":
        return row, {name: pack(columns) for name, columns in result.columns.items()}
    if travels_as is not None:
        return row, Encoded.of(result.columns, row, travels_as)
    return row, result.columns


def _refuse_too_many_kernels(scenario: Scenario, cell: Cell) -> None:
    """Count the steps of a cell at resolution ``span`` and refuse to run too many by kernel.

    Raises
    ------
    ConfigError
        If the run would take more than ``runs.kernel_budget.MAX_EVENTS`` events.
    """
    from simcluster.frames.unroll import kinds_of
    from simcluster.runs.kernel_budget import MAX_EVENTS, events_per_step

    result = simulate(
        scenario,
        strategy=cell.strategy,
        rate_rps=cell.rate_rps,
        seed=cell.seed,
        resolution="span",
    )
    instances = result.columns["instances"]
    num_events = sum(
        num_steps * events_per_step(scenario.environment, kind)
        for kind, num_steps in zip(
            kinds_of(instances), instances["num_steps"].tolist(), strict=True
        )
    )
    if num_events > MAX_EVENTS:
        raise ConfigError(
            "run.resolution",
            "kernel",
            f"{cell.strategy} takes {instances['num_steps'].sum()} steps, about "
            f"{num_events / 1e6:.0f} million events kernel by kernel, more than "
            f"{MAX_EVENTS / 1e6:.0f} million",
            "Ask for fewer requests (workload.num_requests = 10), or for resolution step or span: "
            "they give the same results.",
        )
