"""The command ``simcluster ui``: thin."""

from __future__ import annotations

import importlib.util
import socket
from pathlib import Path
from typing import Final

import click

from simcluster.errors import ConfigError, DataError, printable
from simcluster.show.commands import FIRST, Command
from simcluster.show.examples import root

_NEEDED: Final = ("nicegui", "tomlkit")
_LOCAL: Final = ("127.0.0.1", "localhost", "::1")


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
    text = _read(root() / FIRST if file is None else file)
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
    """Return the text of a scenario, whose files are found from everywhere."""
    from simcluster.scenario.file import parsed
    from simcluster.ui.form import with_whole_paths

    parsed(file)  # one line for what is no scenario
    return with_whole_paths(file.read_text(encoding="utf-8-sig"), file.absolute().parent)


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
