"""Many runs of one scenario: every strategy at every rate with every seed, on all cores."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Generator, Mapping
from pathlib import Path

import numpy as np

from simcluster.errors import ConfigError
from simcluster.frames.itl import gaps_of
from simcluster.frames.metrics import SweepRow, summarise
from simcluster.frames.schema import Columns
from simcluster.runs.executor import outcomes
from simcluster.runs.folder import FORMATS, Comparison, Format, Unfinished, cells_of, read, writing
from simcluster.runs.recorded import Cell
from simcluster.runs.simulate import Result, simulate
from simcluster.scenario import arguments
from simcluster.scenario.scenario import Scenario, refuse_other
from simcluster.strategies.base import dry_run

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
    return summarise(
        result.columns["requests"],
        slo=scenario.environment.slo,
        run=scenario.run,
        strategy=result.strategy,
        rate_rps=result.rate_rps,
        seed=result.seed,
        num_gpus=result.num_gpus,
        instances=result.columns["instances"],
        gaps=gaps_of(result.columns, scenario.environment),
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

    Returns
    -------
    Comparison
        A row per cell, and the frames of each.

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
    with contextlib.ExitStack() as stack:
        folder = (
            stack.enter_context(writing(out, scenario, todo, fmt, replace=replace)) if out else None
        )
        rows: dict[Cell, SweepRow] = {}
        frames: dict[Cell, Mapping[str, Columns]] = {}
        work = _Work(scenario, todo)
        # Closed at once whatever ends this block: no run goes on while the folder is put in order.
        done = stack.enter_context(
            contextlib.closing(_run_all(scenario, todo, jobs, folder, dask, work))
        )
        for cell, row, columns in done:
            rows[cell], frames[cell] = row, columns
            if progress:
                progress(len(rows), len(todo), work.share(cell))
        in_order = [rows[cell] for cell in todo]
        if folder:
            folder.write_sweep(in_order)
    if out:
        return dataclasses.replace(read(out), _scenario=scenario)
    kept = dict(zip(cells_of(in_order), (frames[cell] for cell in todo), strict=True))
    return Comparison(dict(scenario.document), in_order, kept, scenario)


def run(scenario: Scenario, cell: Cell) -> Comparison:
    """Run one cell; the result is a comparison of one."""
    _, row, columns = _run(scenario, cell, None)
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
    """Return one line for each strategy whose TTFT target half of the prompts cannot meet.

    Those are the ones with a target below the time to prefill the median prompt alone.
    """
    ttft_s = scenario.environment.slo.loosest().ttft_s
    cells = comparison.cells()
    prompts = comparison.frames(cells[0])["requests"]["prompt_len"] if ttft_s else np.empty(0)
    if ttft_s is None or not len(prompts):
        return []
    median, lines = int(np.median(prompts)), []
    for name in dict.fromkeys(cell.strategy for cell in cells):
        cluster = dry_run(scenario.environment, scenario.strategy(name))
        prefill_s = cluster.instances[0].prefill_s(median)
        if prefill_s > ttft_s:
            lines.append(
                f"strategy {name!r}: slo.ttft_s = {ttft_s:g} s is below the {prefill_s:.3g} s that "
                f"the median prompt of {median} tokens takes to prefill alone: half of the "
                "requests must miss it."
            )
    return lines


_Outcome = tuple[Cell, SweepRow, Mapping[str, Columns]]


class _Work:
    """How much of the work is done, by offered requests."""

    def __init__(self, scenario: Scenario, todo: list[Cell]) -> None:
        by_time = scenario.workload.duration_s is not None
        self._requests = {c: (c.rate_rps or 1.0) if by_time else 1.0 for c in todo}
        self._left = self._all = sum(self._requests.values())

    def skip(self, cell: Cell) -> None:
        """Take a cell out that is there already."""
        self._all -= self._requests[cell]
        self._left -= self._requests.pop(cell)

    def share(self, cell: Cell) -> float:
        """Return the share that is done, 0 to 1, now that `cell` is finished."""
        self._left -= self._requests.pop(cell, 0.0)
        return 1.0 - self._left / self._all if self._requests else 1.0


def _run_all(
    scenario: Scenario,
    todo: list[Cell],
    jobs: int | None,
    folder: Unfinished | None,
    dask: str | None,
    work: _Work,
) -> Generator[_Outcome, None, None]:
    """Give the outcome of each cell as it finishes; those that are there already come first."""
    left, known = [], []
    for cell in todo:
        if folder and (row := folder.row(cell)):
            known.append((cell, row))
            work.skip(cell)
        else:
            left.append(cell)
    yield from ((cell, row, {}) for cell, row in known)
    # Highest rates first: they take longest, and short runs fill the gaps at the end.
    left.sort(key=lambda cell: -(cell.rate_rps or 0.0))
    calls = [(scenario, cell, None if dask else folder) for cell in left]
    with contextlib.closing(outcomes(_run, calls, jobs=jobs, dask=dask)) as done:
        for cell, row, columns in done:
            if dask and folder:
                folder.write(cell, columns, row)
                columns = {}
            yield cell, row, columns


def _run(scenario: Scenario, cell: Cell, folder: Unfinished | None) -> _Outcome:
    """Run one cell; its frames go into `folder` if there is one, else back to the caller."""
    if scenario.run.resolution == "kernel":
        _refuse_too_many_kernels(scenario, cell)
    result = simulate(scenario, strategy=cell.strategy, rate_rps=cell.rate_rps, seed=cell.seed)
    row = summary(scenario, result)
    if folder is None:
        return cell, row, result.columns
    folder.write(cell, result.columns, row)
    return cell, row, {}


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
