"""Rolling activation of a recorded run: which instance prefills while the others decode.

python plots/fig_rolling_activation.py RESULT_DIR -o rolling_activation.png
"""

from pathlib import Path

import click

from simcluster.errors import DataError
from simcluster.frames.goodput import representative_rate, strategies
from simcluster.runs.folder import read
from simcluster.show.plot import new_figure
from simcluster.show.plot_timeline import legend_of_turns, plot_rolling_activation

LENGTH_S = 25.0
"""What is drawn by default (s), from the middle of the arrivals on."""


@click.command(help=__doc__)
@click.argument("result_dir", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    default="rolling_activation.png",
    show_default=True,
    help="Picture to write.",
)
@click.option("--strategy", help="Which strategy.  [default: the first with prefill windows]")
@click.option(
    "--rate",
    "rate_rps",
    type=float,
    help="Offered rate (requests/s).  [default: the highest that some strategy carries]",
)
@click.option("--seed", type=int, help="Seed of the run.  [default: the first]")
@click.option("--start", "start_s", type=float, help="From here (s).  [default: mid-run]")
@click.option("--end", "end_s", type=float, help="To here (s).  [default: 25 s later]")
def main(
    result_dir: Path,
    output: Path,
    strategy: str | None,
    rate_rps: float | None,
    seed: int | None,
    start_s: float | None,
    end_s: float | None,
) -> None:
    """Read the frames, draw, write the picture."""
    results = read(result_dir)
    target = results.scenario.environment.slo.attainment
    if rate_rps is None and results.sweep["rate_rps"].notna().all():  # a closed loop has none
        rate_rps = representative_rate(results.sweep, target)
    seed = int(results.sweep["seed"].iloc[0]) if seed is None else seed
    for name in strategies(results.sweep) if strategy is None else [strategy]:
        windows = results.frame("windows", name, rate_rps, seed)
        if len(windows):
            break
    else:
        raise DataError(f"{result_dir}: no strategy in it has prefill windows (kind padg)")
    requests = results.requests(name, rate_rps, seed)
    if start_s is None:
        start_s = float(requests["arrival_s"].median())

    figure = new_figure(width=11.0, height=3.8)
    ax = figure.subplots()
    plot_rolling_activation(
        results.spans(name, rate_rps, seed),
        windows,
        requests=requests,
        start_s=start_s,
        end_s=start_s + LENGTH_S if end_s is None else end_s,
        ax=ax,
    )
    legend_of_turns(ax)
    figure.savefig(output)
    click.echo(output)


if __name__ == "__main__":
    main()
