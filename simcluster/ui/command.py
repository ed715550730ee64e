"""The command ``simcluster ui``: thin."""

from __future__ import annotations

import importlib.util
import socket
from pathlib import Path
from typing import Final

import click

from simcluster.errors import ConfigError, DataError, printable
from simcluster.show.commands import Command

_NEEDED: Final = ("nicegui", "tomlkit")
_LOCAL: Final = ("127.0.0.1", "localhost", "::1")
FIRST: Final = """\
# Which strategy sustains the most? Change anything: `A few facts` writes a file of your own.

[model]
name = "llama-3.1-8b"

[cluster]
gpu = "A100"
nodes = 1
gpus_per_node = 2

[engine]
max_model_len = 8192

[workload]
arrivals = "poisson"
duration_s = 30

[workload.lengths]
kind = "lognormal"
prompt_median = 800
prompt_sigma = 0.7
prompt_max = 6000
output_median = 60
output_sigma = 0.6
output_max = 600

[slo]
ttft_s = 1.0
tpot_s = 0.04
attainment = 0.9

[sweep]
rates_rps = [6, 8, 10, 12, 14, 16]

[[strategy]]  # every instance prefills and decodes
name = "chunked prefill"
kind = "nodg"
scheduler = "chunked"

[[strategy]]  # prefill and decode instances, the KV cache moves between them
name = "DistServe"
kind = "fudg"

[[strategy]]  # instances take turns with prefills
name = "EcoServe"
kind = "padg"
"""
"""The scenario that is there at first: that of `scenarios/first.toml`."""


@click.command(cls=Command)
@click.argument("file", type=click.Path(path_type=Path), required=False)
@click.option(
    "--folder",
    type=click.Path(path_type=Path),
    default=Path("results/ui"),
    show_default=True,
    help="Keep scenarios, traces and answers here.",
)
@click.option(
    "--port", type=click.IntRange(1, 65535), default=8377, show_default=True, help="Port."
)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen at.")
@click.option("--open/--no-open", "opened", default=True, help="Open it in a browser.")
def ui(file: Path | None, folder: Path, port: int, host: str, opened: bool) -> None:
    """Serve a page for this machine: a scenario as a form, its answers, what a change does.

    It begins with scenario FILE, or with a small example. What it runs are the commands of
    `simcluster`, each in a process of its own. Needs the extra: pip install "simcluster[ui]".
    """
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise DataError(
            f"ui: {' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} not installed. "
            'Run `pip install "simcluster[ui]"`.'
        )
    text = FIRST if file is None else _read(file)
    if folder.exists() and not folder.is_dir():
        raise ConfigError("--folder", str(folder), "is no folder", "Give another.")
    _check_free(host, port)
    if host not in _LOCAL:
        click.echo(
            f"warning: --host {host}: anyone who reaches this machine can run simulations "
            "on it, and read the files that scenarios name.",
            err=True,
        )
    from simcluster.ui.page import serve

    click.echo(f"http://{host}:{port} - Ctrl-C ends it; answers stay in {folder}.")
    serve(folder, text, host=host, port=port, opened=opened)


def _read(file: Path) -> str:
    from simcluster.scenario.file import parsed

    parsed(file)  # one line for what is no scenario
    return file.read_text(encoding="utf-8-sig")


def _check_free(host: str, port: int) -> None:
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
    except OSError as error:
        where = f"{printable(host)}:{port}"
        reason = error.strerror or str(error)
        remedy = "Give another with --port or --host."
        raise ConfigError("--port", where, f"cannot be listened at ({reason})", remedy) from None
