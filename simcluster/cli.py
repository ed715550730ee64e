"""The command line: thin, all work is done by the package.

Results go to standard output, progress to standard error. Exit code 1 for an input that cannot be
used (one line, no traceback), 2 for a wrong call.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import gc
import importlib
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar, get_args

import click

from simcluster._compiled import how_it_runs
from simcluster._version import __version__
from simcluster.errors import ConfigError, DataError, SimclusterError, printable, same_thing
from simcluster.show.commands import MOST_GPUS, Command, write_examples, write_groups
from simcluster.show.terminal import QUIET

F = TypeVar("F", bound=Callable[..., Any])


_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
"""What writing to standard output fails with when the disk behind it is full or gone."""


class _Override(click.ParamType):  # type: ignore[type-arg]  # generic since click 8.4
    """``key=value``; the value is read as TOML, else as text; its paths start where we are."""

    name = "key=value"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, object]:
        from simcluster.scenario.file import parse_override, with_paths_of

        try:
            key, given = parse_override(str(value))
            return key, with_paths_of(key, given, Path.cwd())
        except ConfigError as error:
            self.fail(f"{value!r} {error.rule}. {error.remedy}", param, ctx)


class _Quantity(click.ParamType):  # type: ignore[type-arg]  # generic since click 8.4
    """A number with its unit, such as ``800ms``; as seconds, or what `suffix` says."""

    def __init__(self, suffix: str, name: str) -> None:
        self.suffix, self.name = suffix, name

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        from simcluster.scenario.quantities import quantity

        if isinstance(value, float):
            return value
        try:
            return quantity(str(value), self.suffix)
        except ValueError as error:
            self.fail(f"{value!r} {error}, such as 800ms", param, ctx)


class _Group(click.Group):
    """Turns our errors into one line and exit code 1; lists commands by what they are for."""

    command_class = Command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        write_groups(self, ctx, formatter)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        super().format_epilog(ctx, formatter)
        write_examples(self, formatter)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except SimclusterError as error:
            click.echo(f"error: {printable(' '.join(str(error).split()))}", err=True)
            ctx.exit(1)
        except OSError as error:
            if error.errno not in _FULL or error.filename is not None:
                raise
            click.echo(f"error: the output cannot be written ({error.strerror}).", err=True)
            # What is left in the buffer cannot be written at the end either.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            ctx.exit(1)


class _Main(_Group):
    """The group of all commands; those of `_LATE` are imported when one is called."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        # NumPy's matrices are small here: further threads of its BLAS would wait for each other,
        # and spin while they are made (0.05 CPU-s at the start).
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
        # What is imported stays: looking through it for garbage every 700 objects finds none.
        gc.set_threshold(50_000, *gc.get_threshold()[1:])
        return super().main(*args, **kwargs)

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted({*self.commands, *_LATE})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in _LATE and cmd_name not in self.commands:
            module, words = _LATE[cmd_name]
            command = getattr(importlib.import_module(module), cmd_name)
            command.short_help = words
            self.add_command(command)
        return super().get_command(ctx, cmd_name)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        late = {name: click.Command(name, short_help=words) for name, (_, words) in _LATE.items()}
        write_groups(click.Group(commands={**late, **self.commands}), ctx, formatter)


_LATE: Final = {
    "calibrate": (
        "simcluster.fidelity.calibrate.command",
        "Fit a GPU's constants to measured kernels.",
    ),
    "measure": ("simcluster.fidelity.measure.command", "Measure kernel times of a GPU."),
    "ui": ("simcluster.ui.command", "Serve a page with a form and its answers."),
    "validate": ("simcluster.fidelity.validate.command", "Compare simulated with measured times."),
}
"""Commands by name: their module, and what the list of commands says of them."""


class _WordsOf(click.Choice):  # type: ignore[type-arg]  # generic since click 8.2
    """One of the words of a `Literal` of another module, which is imported when they are needed."""

    def __init__(self, module: str, name: str) -> None:
        self._where = module, name
        super().__init__(())

    @property
    def choices(self) -> tuple[Any, ...]:
        module, name = self._where
        return get_args(getattr(importlib.import_module(module), name))

    @choices.setter
    def choices(self, _: object) -> None:
        pass


class _ListByDefault(_Group):
    """A group whose command ``list`` need not be named."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if not args or args[0] not in (*self.commands, *ctx.help_option_names):
            args = ["list", *args]
        return super().parse_args(ctx, args)

    def format_usage(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        formatter.write_usage(ctx.command_path, "[WORDS] [--kind KIND] [--json]")
        formatter.write_usage(ctx.command_path, "COMMAND [ARGS]...", prefix="       ")


_FILE = click.Path(path_type=Path)

_COMMON: Sequence[Callable[[Any], Any]] = (
    click.argument("file", type=_FILE),
    click.option(
        "--set",
        "overrides",
        type=_Override(),
        multiple=True,
        help="Replace a value of the file, such as cluster.nodes=2 or "
        "strategy.EcoServe.tp_size=2; KEY= takes it out; may be repeated.",
    ),
    click.option("--seed", type=click.IntRange(min=0), help="Run with this seed alone."),
    click.option(
        "--trace",
        type=_FILE,
        help="Replay this trace, whole, in place of the arrivals and lengths of [workload].",
    ),
    click.option(
        "--resolution",
        type=click.Choice(["span", "step", "kernel"]),
        help="What is an event; all give the same results, span is the fastest.",
    ),
    click.option(
        "--speed",
        type=click.FloatRange(min=0, min_open=True),
        help="Replay the trace this many times as fast as it was recorded.",
    ),
)

_ONE_RUN: Sequence[Callable[[Any], Any]] = (
    click.option("--strategy", help="Name of the strategy  [default: the first of the file]"),
    click.option(
        "--rate",
        type=click.FloatRange(min=0, min_open=True),
        help="Offered rate (requests/s)  [default: workload.rate_rps, else the trace's own, else "
        "the first of the sweep]",
    ),
)

_OUTPUT: Sequence[Callable[[Any], Any]] = (
    click.option(
        "-o", "--out", type=_FILE, help="Write frames, scenario and seeds to this folder."
    ),
    click.option(
        "--format",
        "fmt",
        type=click.Choice(["parquet", "csv"]),
        default="parquet",
        show_default=True,
        help="Format of the frames.",
    ),
    click.option(
        "--replace", is_flag=True, help="Replace results of another scenario in that folder."
    ),
    click.option("--json", "as_json", is_flag=True, help="Print one JSON object."),
)

_MANY_RUNS: Sequence[Callable[[Any], Any]] = (
    click.option("--jobs", type=click.IntRange(min=1), help="Processes  [default: one per core]"),
    click.option(
        "--dask",
        metavar="ADDRESS",
        help="Run on the workers of this Dask scheduler, such as tcp://host:8786.",
    ),
)


_PERCENTILES: Final = (50, 90, 95, 99)
"""Percentiles that a target of `init` and `plan` can be of."""


def _target_options(latency: str, example: str) -> list[Callable[[Any], Any]]:
    """Return an option for the target of a latency at each percentile; P95 stands in the help."""
    return [
        click.option(
            f"--{latency}-p{percent}",
            type=_Quantity("_s", "TIME"),
            hidden=percent != 95,
            help=f"Target of the {latency.upper()} for 95 % of the requests, such as {example}; "
            "also -p50, -p90, -p99.",
        )
        for percent in _PERCENTILES
    ]


_FACTS: Sequence[Callable[[Any], Any]] = (
    click.option("--model", help="Model: a name of the catalogue, or a folder with config.json."),
    click.option("--gpu", help="GPU: a name of the catalogue (`simcluster catalog --kind gpu`)."),
    click.option("--prompt", type=click.IntRange(min=1), help="Median prompt (tokens)."),
    click.option("--output", type=click.IntRange(min=1), help="Median output (tokens)."),
    *_target_options("ttft", "1s"),
    *_target_options("tpot", "40ms"),
    click.option(
        "--rate", type=click.FloatRange(min=0, min_open=True), help="Requests/s to be served."
    ),
    click.option(
        "--spread",
        type=click.FloatRange(0, 3),
        help="Spread of the lengths: standard deviation of their logarithm; 0: all alike  "
        "[default: 0.8]",
    ),
    click.option(
        "--price",
        type=click.FloatRange(min=0, min_open=True),
        help="USD per GPU and hour  [default: the catalogue's]",
    ),
)


def _draft(gpus: int | None, asks: bool, command: str, **facts: Any) -> Any:
    """Return the draft of these facts; what is missing is asked for, or refused."""
    from simcluster.scenario.draft import LATENCIES, Draft, Target

    questions: dict[str, tuple[str, Any, Any]] = {
        "model": ("Model (name of the catalogue, or a folder with config.json)", str, None),
        "gpu": ("GPU (name of the catalogue)", str, None),
        "prompt": ("Median prompt (tokens)", int, 1000),
        "output": ("Median output (tokens)", int, 200),
    }
    for key, (question, kind, default) in questions.items():
        if facts[key] is None and asks:
            facts[key] = click.prompt(question, type=kind, default=default, err=True)
        if facts[key] is None:
            raise click.UsageError(f"Missing option '--{key}': {question}.")
    targets = [
        Target(latency=latency, percentile=percent, limit_s=facts[f"{latency}_p{percent}"])
        for latency in LATENCIES
        for percent in _PERCENTILES
        if facts[f"{latency}_p{percent}"] is not None
    ]
    if not targets and asks:
        for latency, default in (("ttft", "1s"), ("tpot", "50ms")):
            text = f"{latency.upper()} that 95 % of the requests must meet"
            time_s = click.prompt(text, type=_Quantity("_s", "TIME"), default=default, err=True)
            targets.append(Target(latency=latency, percentile=95, limit_s=time_s))
    if not targets:
        raise click.UsageError("Missing a target: --ttft-p95 1s, --tpot-p95 40ms, or both.")
    given: dict[str, Any] = {} if facts["spread"] is None else {"spread": facts["spread"]}
    return Draft(
        model=facts["model"],
        gpu=facts["gpu"],
        num_gpus=gpus or 8,
        prompt_len=facts["prompt"],
        output_len=facts["output"],
        targets=tuple(targets),
        rate_rps=facts["rate"],
        price_per_gpu_hour=facts["price"],
        command=command,
        **given,
    )


def _called() -> str:
    """Return the command as it was called, for the first line of a file that it writes."""
    import shlex

    context = click.get_current_context()
    words = [
        word
        for option in context.command.params
        for value in [context.params.get(option.name or "")]
        if value is not None and value is not False and option.name not in ("out", "as_json")
        for word in ([option.opts[0]] if value is True else [option.opts[0], _word(option, value)])
    ]
    return printable(shlex.join(["simcluster", str(context.info_name), *words]))


def _word(option: click.Parameter, value: object) -> str:
    """Return the value of an option as it is written."""
    unit = "s" if isinstance(option.type, _Quantity) else ""
    return f"{value:g}{unit}" if isinstance(value, float) else str(value)


def _percents(_: click.Context, option: click.Parameter, text: str) -> tuple[float, ...]:
    """Read percentiles such as ``50,90`` or ``P99`` as shares."""
    shares = []
    for word in filter(None, (word.strip() for word in (text or "").split(","))):
        try:
            percent = float(word.upper().removeprefix("P"))
        except ValueError:
            percent = 0.0
        if not 1 <= percent < 100:
            raise ConfigError(
                f"--{option.name}",
                word,
                "is no percentile from 1 to below 100",
                "Write such as 50,90,99.",
            )
        shares.append(percent / 100)
    return tuple(dict.fromkeys(shares))


def _show_version(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        click.echo(f"simcluster {__version__}, {how_it_runs()}")
        ctx.exit()


def _with(options: Sequence[Callable[[Any], Any]]) -> Callable[[F], F]:
    def decorate(function: F) -> F:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


@click.group(cls=_Main, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_show_version,
    help="Show the version, and whether it runs compiled, and exit.",
)
def main() -> None:
    """Simulate LLM-serving clusters: which strategy sustains the most requests within targets.

    A scenario FILE is TOML; "-" reads standard input. The help of a command ends with examples.
    """


@main.command(short_help="Write a scenario file from a few facts.")
@_with(_FACTS)
@click.option("--gpus", type=click.IntRange(1, MOST_GPUS), help="GPUs, in nodes of 8  [default: 8]")
@click.option("-o", "--out", type=_FILE, help="File to write  [default: print it]")
def init(gpus: int | None, out: Path | None, **facts: Any) -> None:
    """Write a commented scenario file from a few facts, or after a few questions.

    What is not given is asked for if a person is at the terminal.
    """
    from simcluster.studies import plan as plans

    asks = sys.stdin.isatty() and sys.stderr.isatty()
    text = plans.written(_draft(gpus, asks, _called(), **facts))
    if out is None:
        click.echo(text, nl=False)
        return
    if out.exists():
        raise DataError(f"{printable(str(out))}: exists. Give another file with -o.")
    _write(out, text)
    click.echo(f"{out}: next, `simcluster check {out}` and `simcluster goodput {out}`.")


@main.command(short_help="How many GPUs, which strategy, at what cost: from a few facts.")
@_with(_FACTS)
@click.option(
    "--gpus",
    type=click.IntRange(1, MOST_GPUS),
    help="Use at most this many GPUs  [default: as many nodes of 8 as it takes]",
)
@click.option("--jobs", type=click.IntRange(min=1), help="Processes  [default: one per core]")
@click.option("-o", "--out", type=_FILE, help="Write results to this folder, for `report`.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def plan(gpus: int | None, jobs: int | None, out: Path | None, as_json: bool, **facts: Any) -> None:
    """Answer from a few facts: how many GPUs, which strategy, USD per hour and per million tokens.

    Every strategy, parallelism and split that fits is tried by `simcluster rank --need`; what was
    assumed stands below the answer, and the scenario in the folder of -o.
    """
    from simcluster.studies.plan_command import run as answer

    draft = _draft(gpus, False, _called(), **facts)
    if draft.rate_rps is None:
        raise click.UsageError("Missing option '--rate': requests/s to be served.")
    with _progress("planning", "requests") as progress:
        answer(draft, sized=gpus is None, jobs=jobs, progress=progress, out=out, as_json=as_json)


@main.command(short_help="Simulate one strategy at one rate.")
@_with(_COMMON)
@_with(_OUTPUT)
@_with(_ONE_RUN)
@click.option("-v", "--verbose", is_flag=True, help="First print what `simcluster check` says.")
def run(
    out: Path | None,
    fmt: Any,
    replace: bool,
    as_json: bool,
    verbose: bool,
    strategy: str | None,
    rate: float | None,
    **common: Any,
) -> None:
    """Simulate one strategy of scenario FILE at one rate."""
    from simcluster.runs import compare as sweep
    from simcluster.runs import folder as store
    from simcluster.show import text as report

    scenario = _load(**common)
    cell = sweep.choose(scenario, strategy, rate)
    with contextlib.ExitStack() as stack:
        if out:
            folder = stack.enter_context(store.writing(out, scenario, [cell], fmt, replace=replace))
        comparison = sweep.run(scenario, cell)
        if out:
            folder.write(cell, comparison.frames(comparison.cells()[0]), comparison.rows[0])
    _warn(sweep.warnings_of(scenario, comparison))
    checked = None
    if verbose:
        from simcluster.studies.check import facts as checks
        from simcluster.studies.check.report import check_lines

        checked = checks.facts(scenario, strategies=[cell.strategy], rate_rps=cell.rate_rps)
    if as_json:
        known = {} if checked is None else {"check": checked}
        _print_json(report.as_json(comparison, swept=False) | known)
        return
    if checked is not None:
        click.echo(f"{check_lines(scenario, checked)}\n")
    click.echo(report.run_text(comparison), nl=False)


@main.command(short_help="Simulate every strategy at every rate with every seed.")
@_with(_COMMON)
@_with(_OUTPUT)
@_with(_MANY_RUNS)
def compare(
    out: Path | None,
    fmt: Any,
    replace: bool,
    as_json: bool,
    jobs: int | None,
    dask: str | None,
    **common: Any,
) -> None:
    """Simulate every strategy of scenario FILE at every rate with every seed.

    With -o, finished runs are kept: the same command resumes after an interruption. After a change
    of one strategy only the runs of that strategy are simulated again.
    """
    from simcluster.report.of_runs import answer
    from simcluster.runs import compare as sweep
    from simcluster.show import text as report

    scenario = _load(**common)
    with report.resumable(out is not None), _progress() as progress:
        comparison = sweep.compare(
            scenario,
            jobs=jobs,
            progress=progress,
            out=out,
            fmt=fmt,
            replace=replace,
            dask=dask,
        )
    _warn(sweep.warnings_of(scenario, comparison))
    if as_json:
        _print_json(report.as_json(comparison, swept=bool(scenario.rates_rps)))
    else:
        click.echo(report.comparison_text(comparison, answer(comparison)), nl=False)


@main.command(short_help="Rank all that fits by goodput, or find the cheapest for a rate.")
@_with(_COMMON[:3])
@_with(_MANY_RUNS)
@click.option("-o", "--out", type=_FILE, help="Write rows (CSV, JSON) and pictures to this folder.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option("--all", "show_all", is_flag=True, help="Print all candidates.")
@click.option(
    "--need",
    "need_rps",
    type=click.FloatRange(min=0, min_open=True),
    help="Find the cheapest plans that sustain this rate (requests/s)  [default: rank.need_rps]",
)
def rank(
    file: Path,
    overrides: Sequence[tuple[str, object]],
    seed: int | None,
    need_rps: float | None,
    jobs: int | None,
    dask: str | None,
    **options: Any,
) -> None:
    """Rank all strategies for the GPUs of scenario FILE, by goodput, with intervals.

    The table [rank] of FILE says the space: families, parallelism, GPUs, splits, limits. Its
    strategies, if it has any, are candidates too. With a need: the cheapest plans that sustain it.
    """
    from simcluster.studies.rank import command

    if need_rps is not None:
        overrides = [*overrides, ("rank.need_rps", need_rps)]
    scenario = _load(file, overrides, seed)
    with _progress("ranking", "requests") as progress:
        command.run(scenario, jobs=jobs, dask=dask, progress=progress, **options)


@main.command(short_help="Choose GPUs and load for several models together.")
@_with(_COMMON[:2])
@_with(_MANY_RUNS)
@click.option(
    "--rate",
    type=click.FloatRange(min=0, min_open=True),
    help="Offered rate (requests/s)  [default: the scenario's]",
)
@click.option(
    "-o", "--out", type=_FILE, help="Write the chosen plan here, as a scenario for simcluster run."
)
@click.option("--plot", "picture", type=_FILE, help="Draw the Pareto front here (PNG).")
@click.option(
    "--results", type=_FILE, help="Write results, plan and scenario to this folder, for `report`."
)
@click.option(
    "--cache",
    type=_FILE,
    help="Folder of finished simulations  [default: simcluster in the user's cache folder]",
)
@click.option("--baselines/--no-baselines", default=True, help="Find the plans to compare with.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def cooptimize(file: Path, overrides: Sequence[tuple[str, object]], **options: Any) -> None:
    """Choose load fractions and GPUs for the models of scenario FILE together.

    FILE has a table [cooptimize] with models, limits and goal. Prints the Pareto front of cost,
    latency and quality, and the best plan, simulated token by token. Finished simulations are kept:
    running the command again resumes an interrupted search.
    """
    from simcluster.scenario.file import load
    from simcluster.studies.cooptimize import command

    command.run(load(file, dict(overrides)), **options)


@main.command(short_help="Find the highest rate of each strategy, and how sure it is.")
@_with(_COMMON)
@click.option("-o", "--out", type=_FILE, help="Write results, runs and scenario to this folder.")
@click.option("--replace", is_flag=True, help="Replace results of another scenario in that folder.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@_with(_MANY_RUNS)
@click.option(
    "--tolerance",
    type=click.FloatRange(min=0.001, max=0.5),
    default=0.03,
    show_default=True,
    help="Half width of the 95 % interval over the goodput.",
)
@click.option(
    "--max-requests",
    type=click.IntRange(min=1000),
    default=200_000,
    show_default=True,
    help="Longest single run (requests).",
)
@click.option(
    "--indifference",
    type=click.FloatRange(min=0.001, max=0.5),
    default=0.03,
    show_default=True,
    help="Difference of two goodputs within which either may be taken.",
)
@click.option(
    "--step-time-errors/--no-step-time-errors",
    default=True,
    show_default=True,
    help="Simulate what the errors of the step times do to each goodput.",
)
@click.option(
    "--sensitivity",
    is_flag=True,
    help="Also simulate what lengths and targets that differ by 10 % do to each goodput.",
)
@click.option(
    "--levels",
    default="",
    metavar="50,90,..",
    callback=_percents,
    help="Also search the rates that keep other shares within the targets, such as 50,90,99 (%).",
)
@click.option(
    "--by-rate", is_flag=True, help="Also compare each pair of strategies at all of the goodputs."
)
def goodput(
    file: Path,
    overrides: Any,
    seed: int | None,
    trace: Path | None,
    resolution: str | None,
    speed: float | None,
    **options: Any,
) -> None:
    """Find the highest rate that each strategy of scenario FILE sustains, and how sure that is.

    Into a folder it resumes from the runs that are there: after a kill nothing is lost or done
    twice, after a change of one strategy only its runs are done. Exit status 3: it is done, and a
    strategy is not settled.
    """
    from simcluster.studies.goodput import command

    shown = _progress("searching", "requests")
    command.run(_load(file, overrides, seed, trace, resolution, speed), progress=shown, **options)


@main.command(short_help="Draw the results in FOLDER as pictures.")
@click.argument("folder", type=_FILE)
@click.option("-o", "--out", type=_FILE, help="Folder for the pictures  [default: FOLDER/figures]")
@click.option("--rate", type=float, help="Rate of the latency curves (requests/s).")
@click.option("--seed", type=int, help="Seed of the latency curves.")
@click.option(
    "--format",
    "fmt",
    type=click.Choice(["png", "svg", "pdf"]),
    default="png",
    show_default=True,
    help="Format of the pictures.",
)
@click.option(
    "--columns",
    type=click.IntRange(1, 2),
    help="Width in columns of a paper, without a title  [default: as on a screen]",
)
def plot(
    folder: Path,
    out: Path | None,
    rate: float | None,
    seed: int | None,
    fmt: Any,
    columns: Any,
) -> None:
    """Draw the results in FOLDER: latencies, attainment, goodput, queues, KV usage, links."""
    from simcluster.report.kinds import kind_of
    from simcluster.runs import folder as store
    from simcluster.show import text as report

    kind, _ = kind_of(folder)
    if kind != "runs":
        raise DataError(
            f"{printable(str(folder))}: holds what `simcluster {kind}` found, without the requests "
            f"that pictures need. `simcluster report {printable(str(folder))}` draws what it has."
        )
    comparison = store.read(folder)
    place = out or folder / store.FIGURES
    for path in report.write_figures(comparison, place, rate, seed, fmt=fmt, columns=columns):
        click.echo(path)


@main.command(short_help="Write the results in FOLDER as one HTML page.")
@click.argument("folder", type=_FILE)
@click.option(
    "-o",
    "--out",
    type=_FILE,
    help="File to write; folders above it are made  [default: FOLDER.html]",
)
def report(folder: Path, out: Path | None) -> None:
    """Write the results in FOLDER as one HTML page: answer, confidence, tables, charts, scenario.

    FOLDER is what `run`, `compare`, `goodput` or `rank` wrote with -o, or `cooptimize` with
    --results. The page needs no network and holds all that it shows.
    """
    from simcluster.report.make import write_report

    if out is not None and not out.name:
        raise DataError(f"{out}: is no file. Give the path of a file, such as -o report.html.")
    beside = folder.absolute()
    click.echo(write_report(folder, out or beside.parent / f"{beside.name}.html"))


@main.command(short_help="Say what differs between two result folders.")
@click.argument("first", type=_FILE)
@click.argument("second", type=_FILE)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def diff(first: Path, second: Path, as_json: bool) -> None:
    """Say what differs between the result folders FIRST and SECOND: scenario, and outcome.

    Outcomes with intervals say whether chance can have made the difference.
    """
    from simcluster.report import difference

    found = difference.difference(first, second)
    if as_json:
        _print_json(difference.as_json(found))
    else:
        click.echo(difference.as_text(found, (str(first), str(second))), nl=False)


@main.command(short_help="Check this installation: versions, extras, folders.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def doctor(as_json: bool) -> None:
    """Check this installation: versions, cores, extras, folders, measured data.

    Exit status 1: something that is needed is missing.
    """
    from simcluster.show import doctor as checks

    found = checks.findings()
    if as_json:
        _print_json([dataclasses.asdict(one) for one in found])
    else:
        click.echo(checks.as_text(found), nl=False)
    if any(one.state == "broken" for one in found):
        click.get_current_context().exit(1)


@main.command(short_help="List the examples, or copy them here.")
@click.argument("action", type=click.Choice(["list", "copy"]), default="list")
@click.argument("folder", type=_FILE, default=".", metavar="[DIR]")
def examples(action: str, folder: Path) -> None:
    """List the scenarios and notebooks that come with simcluster, or copy them into DIR.

    Copied they stand as in a checkout: DIR/scenarios, DIR/plots, DIR/examples. Without DIR they
    are copied here. Nothing is replaced; in a checkout they are there already.
    """
    from simcluster.show import examples as packaged

    if action == "copy":
        written = packaged.copy(folder)
        for path in written:
            click.echo(path)
        if not written:
            click.echo(f"{printable(str(folder))}: the examples are there already.")
        return
    for name, about in packaged.described():
        click.echo(f"{name}\n    {about}")


@main.command(short_help="Draw one run for ui.perfetto.dev.")
@_with(_COMMON)
@_with(_ONE_RUN)
@click.option("-o", "--out", type=_FILE, required=True, help="File to write: .json or .json.gz.")
@click.option(
    "--start", type=click.FloatRange(min=0), default=0.0, show_default=True, help="From here (s)."
)
@click.option("--end", type=click.FloatRange(min=0), help="To here (s)  [default: to the end]")
def timeline(
    out: Path,
    strategy: str | None,
    rate: float | None,
    start: float,
    end: float | None,
    resolution: Any,
    **common: Any,
) -> None:
    """Draw one run of scenario FILE for ui.perfetto.dev: instances, links, requests.

    Instances show their steps; with --resolution span runs of equal steps, with --resolution kernel
    also every kernel, of a short interval.
    """
    from simcluster.runs import compare as sweep
    from simcluster.show.timeline import write_timeline

    scenario = _load(**common)
    cell = sweep.choose(scenario, strategy, rate)
    count = write_timeline(
        scenario,
        out,
        strategy=cell.strategy,
        rate_rps=cell.rate_rps,
        seed=cell.seed,
        resolution=resolution or "step",
        start_s=start,
        end_s=end,
    )
    click.echo(f"{out}: {count:,} events. Open it in https://ui.perfetto.dev")


_FORMATS, _TURNS = "simcluster.workload.formats", "simcluster.workload.turns"


@main.command(short_help="Say what is understood of a trace file.")
@click.argument("file", type=_FILE)
@click.option(
    "--format",
    type=_WordsOf(_FORMATS, "TraceFormat"),
    default="auto",
    metavar="NAME",
    help="Format, by its name; a wrong one lists them  [default: by its contents]",
)
@click.option(
    "--time-unit",
    type=_WordsOf(_FORMATS, "TimeUnit"),
    metavar="UNIT",
    help="Unit of its times: s, ms, us, ns.",
)
@click.option("--block-size", type=click.IntRange(1, 1 << 20), help="Tokens of a block with an id.")
@click.option(
    "--turns",
    type=_WordsOf(_TURNS, "TurnLengths"),
    default="auto",
    help="Rows of a conversation hold the whole prompt, or what a turn adds.",
)
@click.option("--start", type=click.FloatRange(0), default=0.0, help="From here (s).")
@click.option("--end", type=click.FloatRange(0, min_open=True), help="To here (s).")
@click.option("-o", "--out", type=_FILE, help="Draw it into this picture (.png, .svg, .pdf).")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def trace(
    file: Path, out: Path | None, start: float, end: float | None, as_json: bool, **told: Any
) -> None:
    """Say what is understood of the trace in FILE: format, unit, rates, lengths, reuse.

    The options are those of workload.trace in a scenario; the last lines are such a table.
    """
    from simcluster.studies import trace_file
    from simcluster.workload.replay import TraceReplay

    asked = TraceReplay(path=str(file), start_s=start, end_s=end, **told)
    found = asked.read()
    known = trace_file.facts(found)
    if as_json:
        _print_json(known)
    else:
        click.echo(trace_file.trace_text(asked, found, known), nl=False)
    if out is not None:
        trace_file.write_figure(found, out)
        click.echo(out, err=True)


@main.command(short_help="Say what fits, how long steps take and what FILE sustains at most.")
@_with(_COMMON[:4])
@_with(_ONE_RUN)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def check(strategy: str | None, rate: float | None, as_json: bool, **common: Any) -> None:
    """Say what is known of scenario FILE without simulating it.

    Of every strategy: weights and KV cache per GPU, the largest batch, step times, KV transfers,
    what it sustains at most; then links, engine defaults, what of the input is not simulated, and
    how well each figure is known.
    """
    from simcluster.studies.check.facts import facts
    from simcluster.studies.check.report import check_text

    scenario = _load(**common)
    known = facts(scenario, strategies=[strategy] if strategy else (), rate_rps=rate)
    if as_json:
        _print_json(known)
    else:
        click.echo(check_text(scenario, known), nl=False)


@main.group(
    cls=_ListByDefault,
    short_help="List GPUs, models, links, prices, or add a model.",
    subcommand_metavar="COMMAND [ARGS]...",
)
def catalog() -> None:
    """List the entries of the catalogue, or make one.

    `simcluster catalog A100` is short for `simcluster catalog list A100`.
    """


@catalog.command("list")
@click.argument("words", nargs=-1)
@click.option(
    "--kind",
    type=click.Choice(["gpu", "model", "link", "node", "engine", "lengths", "quality", "price"]),
    help="List these only; prices are listed only so.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def catalog_list(words: Sequence[str], kind: str | None, as_json: bool) -> None:
    """List the entries whose name or summary contains all WORDS (the default)."""
    from simcluster import catalog as entries
    from simcluster.show.text import catalog_text

    text = " ".join(words)
    found = entries.search(text, kind)
    if as_json:
        _print_json([dataclasses.asdict(entry) for entry in found])
    elif found:
        click.echo(catalog_text(found), nl=False)
    else:
        kinds = entries.KINDS if kind is None else ("gpu" if kind == "price" else kind,)
        known = [part for each in kinds for n in entries.names(each) for part in (n, n.split()[0])]
        hint = same_thing(text, dict.fromkeys(known)) or "`simcluster catalog` lists all."
        raise DataError(f"nothing in the catalogue matches {text!r}. {hint}")


@catalog.command("add-model")
@click.argument("config", type=_FILE)
@click.option("-o", "--out", type=_FILE, help="Add it to this catalogue file  [default: print it]")
@click.option("--name", help="Name of the entry  [default: from the file or its folder]")
def catalog_add_model(config: Path, out: Path | None, name: str | None) -> None:
    """Read a model's config.json (Hugging Face style) as an entry."""
    from simcluster.catalog import config_json, model_entry
    from simcluster.catalog.own_file import add_entry, entry_text
    from simcluster.show.text import model_text

    row = config_json.read(config, name)
    lines = model_text(model_entry.model(row))
    if out is None:
        click.echo("".join(f"# {line}\n" for line in lines) + entry_text("model", row), nl=False)
        return
    add_entry(out, "model", row)
    for line in lines:
        click.echo(line)
    click.echo(f'In a scenario beside it: catalog = ["{out.name}"], model.name = "{row["name"]}"')


@main.command(short_help="Print a scenario with all defaults filled in.")
@_with(_COMMON)
def show(**common: Any) -> None:
    """Print scenario FILE with all defaults filled in, as TOML."""
    from simcluster.catalog.toml_writer import to_toml

    click.echo(to_toml(_load(**common).document), nl=False)


@main.command(short_help="Print the JSON Schema of scenario files.")
@click.option("--markdown", is_flag=True, help="Print the table of keys of the documentation.")
@click.option("--frames", is_flag=True, help="Print every column of result files (Markdown).")
def schema(markdown: bool, frames: bool) -> None:
    """Print the JSON Schema of scenario files."""
    from simcluster.frames import schema as frames_schema
    from simcluster.scenario import file as scenario_file

    if frames:
        click.echo(frames_schema.markdown(), nl=False)
    elif markdown:
        click.echo(scenario_file.markdown_keys(), nl=False)
    else:
        _print_json(scenario_file.json_schema())


def _load(
    file: Path,
    overrides: Sequence[tuple[str, object]],
    seed: int | None,
    trace: Path | None = None,
    resolution: str | None = None,
    speed: float | None = None,
) -> Any:
    """Return the scenario of the common options."""
    from simcluster.scenario.file import changed, load

    changes: dict[str, object] = {}
    if trace is not None:
        changes["workload.trace"] = str(trace.absolute())
    changes |= dict(overrides)
    if seed is not None:
        changes["run.seeds"] = [seed]
    if resolution is not None:
        changes["run.resolution"] = resolution
    try:
        scenario = load(file, changes)
    except DataError:
        from simcluster.runs.output import interrupted

        if words := interrupted(file) or interrupted(file.parent):
            raise DataError(words) from None
        raise
    if speed is None:
        return scenario
    from simcluster.workload import build

    if scenario.workload.trace is None:
        rule = "there is no trace to replay"
        raise ConfigError("--speed", speed, rule, "Give one with --trace, or a rate with --rate.")
    longest = scenario.environment.model.max_model_len
    own = build(scenario.workload, seed=0, rate_rps=None, max_model_len=longest).rate_rps
    if own is None:
        rule = "the trace has no rate: all its requests arrive at once"
        raise ConfigError("--speed", speed, rule, "Leave it out.")
    return changed(scenario, {"workload.rate_rps": own * speed, "sweep.rates_rps": []})


@contextlib.contextmanager
def _progress(
    label: str = "simulating", noun: str = "runs"
) -> Iterator[Callable[[int, int, float], None] | None]:
    """Show a bar with the time left on standard error, if a person reads it."""
    if QUIET.get() or not sys.stderr.isatty():
        yield None
        return
    steps = 1000
    with click.progressbar(
        length=steps,
        label=label,
        file=sys.stderr,
        show_eta=True,
        item_show_func=lambda text: text,
    ) as bar:
        yield lambda done, total, share: bar.update(
            round(share * steps) - bar.pos, f"{done:,}/{total:,} {noun}"
        )


def _write(out: Path, text: str) -> None:
    """Write a file, whole or not at all."""
    from simcluster.runs import output

    try:
        output.write_whole(out, text)
    except OSError as error:
        line = f"{printable(str(out))}: cannot be written ({error.strerror or error})."
        raise DataError(f"{line} Give another file with -o.") from None


def _warn(lines: Sequence[str]) -> None:
    for line in () if QUIET.get() else lines:
        click.echo(f"warning: {printable(line)}", err=True)


def _print_json(value: object) -> None:
    click.echo(json.dumps(value, indent=2))
