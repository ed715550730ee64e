"""How commands look: groups, examples at the end of every help, options that many have."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any, Final

import click

from simcluster.runs.watch import share_done
from simcluster.show.terminal import QUIET, WIDE, signs_of_life

GROUPS: Final[Mapping[str, tuple[str, ...]]] = {
    "Begin": ("init", "plan", "ui", "examples", "doctor"),
    "Simulate": ("run", "compare", "timeline"),
    "Search": ("goodput", "rank", "cooptimize"),
    "Results": ("report", "plot", "diff"),
    "Before a run": ("check", "show", "trace", "catalog", "schema"),
    "Hardware and accuracy": ("measure", "calibrate", "validate"),
}
"""Commands by what they are for, as the help lists them."""

MOST_GPUS: Final = 512
"""Most GPUs that `plan` tries and `init` writes; here, so that the help need not load either."""
FIRST: Final = "scenarios/first.toml"
_FACTS: Final = "--model llama-3.1-8b --gpu A100 --prompt 400 --output 60 --ttft-p95 1s"
_SHORT: Final = "--tolerance 0.2 --max-requests 1000"
EXAMPLES: Final[Mapping[str, tuple[str, str]]] = {
    "init": (f"init {_FACTS} -o mine.toml", "init --model qwen2.5-32b --gpu H100 --prompt 1500 "
             "--output 300 --ttft-p95 1s --tpot-p95 40ms --rate 25"),
    "plan": (f"plan {_FACTS} --rate 8", f"plan {_FACTS} --rate 8 --gpus 2 -o results/plan"),
    "ui": ("ui", f"ui {FIRST} --port 9000 --no-open"),
    "examples": ("examples", "examples copy mine"),
    "doctor": ("doctor", "doctor --json"),
    "run": (f"run {FIRST} --strategy EcoServe --rate 10",
            f"run {FIRST} --set slo.ttft=800ms -o results/run"),
    "compare": (f"compare {FIRST} -o results/first",
                f"compare {FIRST} --set cluster.gpu=H100 -o results/h100"),
    "timeline": (f"timeline {FIRST} --end 5 -o timeline.json",
                 f"timeline {FIRST} --strategy EcoServe --start 2 --end 3 -o kernels.json.gz "
                 "--resolution kernel"),
    "goodput": (f"goodput {FIRST} {_SHORT} -o results/goodput",
                f"goodput {FIRST} {_SHORT} --set slo.tpot=30ms --json"),
    "rank": (f"rank {FIRST} --set rank.tolerance=0.2 -o results/rank",
             f"rank {FIRST} --need 8 --set rank.tolerance=0.2"),
    "cooptimize": ("cooptimize scenarios/first_cooptimize.toml --results results/cooptimize",
                   "cooptimize scenarios/first_cooptimize.toml --no-baselines -o best.toml"),
    "report": ("report results/first", "report results/goodput -o goodput.html"),
    "plot": ("plot results/first", "plot results/first --format pdf --columns 1 -o pictures"),
    "diff": ("diff results/first results/h100", "diff results/first results/h100 --json"),
    "check": (f"check {FIRST}", f"check {FIRST} --strategy DistServe --rate 10"),
    "show": (f"show {FIRST}", f"show {FIRST} --set strategy.EcoServe.tp_size=2"),
    "trace": ("trace scenarios/first_trace.csv", "trace scenarios/first_trace.csv -o trace.png"),
    "catalog": ("catalog H100", "catalog --kind price L20"),
    "list": ("catalog list A100", "catalog list --kind gpu"),
    "add-model": ("catalog add-model models/mine", "catalog add-model models/mine -o mine.toml"),
    "schema": ("schema", "schema --markdown"),
    "measure": ("measure -o mine.csv", "measure --device cpu --quick -o toy.csv"),
    "calibrate": ("calibrate mine.csv --gpu A100 -o mine.toml",
                  "calibrate DATA --gpu A100 --set vidur_mlp"),
    "validate": ("validate DATA --gate", "validate DATA --only published_anchors --json"),
}  # fmt: skip
"""Two calls of each command, without ``simcluster``; `tests/test_help.py` runs them."""

_WITH_TABLES: Final = frozenset(
    (
        "run",
        "compare",
        "goodput",
        "rank",
        "plan",
        "cooptimize",
        "check",
        "diff",
        "trace",
        "validate",
    )
)
"""Commands whose tables may be wider than a terminal."""
_WITH_PROGRESS: Final = frozenset(
    ("compare", "goodput", "rank", "plan", "cooptimize", "measure", "ui")
)
"""Commands that show by themselves how far they are."""
_DOING: Final[Mapping[str, str]] = {
    "run": "simulating",
    "timeline": "simulating",
    "plot": "drawing",
    "report": "writing the report",
    "validate": "comparing with measurements",
    "calibrate": "fitting",
}


class Command(click.Command):
    """A command with examples, ``--quiet``, and ``--wide`` where it prints tables."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        add_common(self)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the examples after the options."""
        super().format_epilog(ctx, formatter)
        write_examples(self, formatter)

    def invoke(self, ctx: click.Context) -> Any:
        """Run it, with signs of life on a terminal."""
        with alive(self.name):
            return super().invoke(ctx)


def add_common(command: click.Command) -> None:
    """Give a command the options that many have."""
    command.params.append(_flag("--quiet", "-q", QUIET, "No progress, no warnings."))
    if command.name in _WITH_TABLES:
        words = "Print tables whole, however wide  [default: split to fit]"
        command.params.append(_flag("--wide", None, WIDE, words))


def _flag(name: str, short: str | None, variable: Any, words: str) -> click.Option:
    def remember(_: click.Context, __: click.Parameter, value: bool) -> None:
        variable.set(value)

    names = [name] if short is None else [short, name]
    return click.Option(names, is_flag=True, expose_value=False, callback=remember, help=words)


@contextlib.contextmanager
def alive(name: str | None) -> Iterator[None]:
    """Show that a command works, if it does not do so by itself."""
    if name in _WITH_PROGRESS:
        yield
        return
    with signs_of_life(_DOING.get(name or "", "working"), share_done):
        yield


def write_examples(command: click.Command, formatter: click.HelpFormatter) -> None:
    """Write two calls of a command, each on lines that can be copied."""
    calls = EXAMPLES.get(command.name or "")
    if not calls:
        return
    with formatter.section("Examples"):
        for call in calls:
            first, *rest = _folded(f"simcluster {call}", formatter.width - 4)
            formatter.write(f"  {first}\n")
            for line in rest:
                formatter.write(f"      {line}\n")


def _folded(call: str, width: int) -> list[str]:
    r"""Return a call on lines of at most `width`, each but the last with a backslash.

    >>> _folded("simcluster run a.toml --rate 1", 22)
    ['simcluster run \\', 'a.toml --rate 1']
    """
    lines = [""]
    for word in call.split(" "):
        longer = f"{lines[-1]} {word}".strip()
        if len(longer) > width - 6 and lines[-1]:
            lines.append(word)
        else:
            lines[-1] = longer
    return [f"{line} \\" for line in lines[:-1]] + lines[-1:]


def write_groups(group: click.Group, ctx: click.Context, formatter: click.HelpFormatter) -> None:
    """Write the commands of a group by what they are for, each with a line that is not cut."""
    named = [name for names in GROUPS.values() for name in names]
    sections = {**GROUPS, "Other": tuple(n for n in group.commands if n not in named)}
    for title, names in sections.items():
        rows = [
            (name, group.commands[name].get_short_help_str(limit=200))
            for name in names
            if name in group.commands
        ]
        if rows:
            with formatter.section(title):
                formatter.write_dl(rows)
