"""``simcluster measure``."""

from __future__ import annotations

from pathlib import Path

import click

from simcluster.fidelity.measure.plan import DEFAULT_MODELS, GROUPS
from simcluster.show.commands import Command


@click.command("measure", cls=Command)
@click.option(
    "-o",
    "--out",
    type=click.Path(path_type=Path),
    help="CSV file to write  [default: named after the GPU, here]",
)
@click.option("--device", default="cuda", show_default=True, help="cuda, cuda:1, ... or cpu.")
@click.option("--quick", is_flag=True, help="A few calls of toy size, to try it out.")
@click.option(
    "--model",
    "models",
    multiple=True,
    help="Model of the catalogue whose shapes are measured; may be repeated  "
    f"[default: {', '.join(DEFAULT_MODELS)}]",
)
@click.option(
    "--only",
    "groups",
    multiple=True,
    type=click.Choice(GROUPS),
    help="Measure this group of calls; may be repeated  [default: all]",
)
@click.option(
    "--budget",
    type=click.FloatRange(min=1),
    default=240.0,
    show_default=True,
    help="Start no call later than this (s).",
)
@click.pass_context
def measure(
    ctx: click.Context,
    out: Path | None,
    device: str,
    quick: bool,
    models: tuple[str, ...],
    groups: tuple[str, ...],
    budget: float,
) -> None:
    """Time kernels on this machine's GPU, into a CSV for `simcluster calibrate`.

    GEMMs, attention, elementwise kernels, collectives where there are several GPUs, and the cost of
    launching. Needs PyTorch: pip install "simcluster[gpu]".
    """
    from simcluster.fidelity.measure import session

    settings = session.Settings(
        path=out,
        device=device,
        quick=quick,
        models=models or DEFAULT_MODELS,
        groups=tuple(name for name in GROUPS if name in groups) or GROUPS,
        budget_s=budget,
    )
    try:
        record = session.measure(settings, lambda line: click.echo(line, err=True))
    except KeyboardInterrupt:
        click.echo("\nInterrupted; the file holds what was measured.", err=True)
        ctx.exit(130)
    click.echo(f"{record.path}: {len(record.rows)} rows. Next:")
    click.echo(f"simcluster calibrate {record.path} --gpu NAME -o mine.toml")
