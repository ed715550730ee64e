"""Commands that the page starts: each a process of its own with a folder of its own.

A process can be stopped, and what goes wrong in it leaves the page as it is. What it does is what
``simcluster`` does at a terminal: the page shows the command.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shlex
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

from simcluster.errors import DataError
from simcluster.report.kinds import kind_of

State = Literal["running", "done", "not settled", "failed", "stopped"]

SCENARIO: Final = "scenario.toml"
REPORT: Final = "report.html"
_COLUMNS: Final = 100
_ENDED: Final[Mapping[int, State]] = {0: "done", 3: "not settled"}
"""By exit status; 3: a search that is done without a goodput for one of the strategies."""
_FOLDER: Final = re.compile(r"(\d+)-([a-z]+)")
_FILE: Final = re.compile(r"(\d+)-[a-z]+(\.toml)?")
"""Names of what a command leaves, also one that failed or was stopped."""
_CONTROL: Final = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_BAR: Final = re.compile(r"\[[#\- ]*\]\s+(\d+)%(?:\s+((?:\d+d )?\d\d:\d\d:\d\d))?")
"""A bar as click draws it: percent, and the time that is left."""


@dataclass(slots=True)
class Job:
    """A command, and what came of it."""

    number: int
    command: str
    """Such as ``goodput``."""
    folder: Path
    words: tuple[str, ...] = ()
    """The whole call, without ``simcluster``."""
    state: State = "running"
    started: float = field(default_factory=time.monotonic)
    seconds: float = 0.0
    percent: int | None = None
    left: str = ""
    """Time that is left, as the command says."""
    output: str = ""
    said: list[str] = field(default_factory=list)
    """Warnings and errors, a line each."""
    process: asyncio.subprocess.Process | None = None

    @property
    def title(self) -> str:
        """How the page names it."""
        return f"{self.number} {self.command}"

    @property
    def call(self) -> str:
        """The call as a terminal takes it."""
        return shlex.join(("simcluster", *self.words))

    @property
    def report(self) -> Path | None:
        """Its report, if there is one."""
        file = self.folder / REPORT
        return file if file.is_file() else None

    @property
    def scenario(self) -> str:
        """The text of the scenario that was asked."""
        file = self.folder.with_suffix(".toml")
        for place in (file, self.folder / SCENARIO):
            if place.is_file():
                return place.read_text(encoding="utf-8")
        return ""

    def read(self, line: str, *, passing: bool = False) -> None:
        """Take a line of standard error.

        Parameters
        ----------
        line : str
            How far it is, or something that a person must know.
        passing : bool
            The next one stands in its place: a sign of life.
        """
        line = _CONTROL.sub("", line).strip()
        if bar := _BAR.search(line):
            self.percent, self.left = int(bar[1]), bar[2] or ""
        elif line and not passing:
            self.said.append(line)


class Jobs:
    """The commands of a folder: those that ran before, and new ones.

    Parameters
    ----------
    folder : Path
        Where each command gets its scenario ``N-COMMAND.toml`` and its folder ``N-COMMAND``.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.all: dict[int, Job] = {}
        if folder.is_dir():
            for place in folder.iterdir():
                self._find(place)

    def _taken(self) -> Iterator[int]:
        """Give the numbers of commands that have left something in the folder."""
        for place in self.folder.iterdir():
            if match := _FILE.fullmatch(place.name):
                yield int(match[1])

    def _find(self, place: Path) -> None:
        match = _FOLDER.fullmatch(place.name)
        if match is None or not place.is_dir():
            return
        with contextlib.suppress(DataError):
            kind_of(place)
            number = int(match[1])
            output = place / "output.txt"
            text = output.read_text(encoding="utf-8") if output.is_file() else ""
            self.all[number] = Job(number, match[2], place, state="done", output=text)

    async def run(
        self,
        command: str,
        options: Sequence[str],
        scenario: str | None,
        begun: Callable[[Job], object] = lambda _: None,
    ) -> Job:
        """Run a command to its end, and write its report.

        Parameters
        ----------
        command : str
            Such as ``goodput``.
        options : sequence of str
            What stands behind it.
        scenario : str, optional
            Text of the scenario file; ``plan`` has none.
        begun : callable, optional
            Called with the job once it is there.

        Raises
        ------
        OSError
            If the folder cannot be written.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        number = 1 + max([*self.all, *self._taken()], default=0)
        job = Job(number, command, self.folder / f"{number}-{command}")
        words = [command]
        if scenario is not None:
            file = job.folder.with_suffix(".toml")
            file.write_text(scenario, encoding="utf-8")
            words.append(str(file))
        words += [*options, "-o", str(job.folder)]
        job.words = tuple(words)
        self.all[number] = job
        begun(job)
        code, job.output = await self._call(job, words)
        job.seconds = time.monotonic() - job.started
        if job.state == "running":
            job.state = _ENDED.get(code, "failed")
        if job.state in ("done", "not settled"):
            (job.folder / "output.txt").write_text(job.output, encoding="utf-8")
            report = ["report", str(job.folder), "-o", str(job.folder / REPORT), "--quiet"]
            await self._call(job, report)
        return job

    async def difference(self, first: Job, second: Job) -> str:
        """Return what ``simcluster diff`` says of two jobs."""
        quiet = Job(0, "diff", self.folder)
        _, output = await self._call(
            quiet, ["diff", str(first.folder), str(second.folder), "--quiet"]
        )
        return output or "\n".join(quiet.said)

    async def written(self, facts: Sequence[str]) -> str:
        """Return the scenario that ``simcluster init`` writes of options.

        Raises
        ------
        DataError
            If it refuses them; with its line.
        """
        quiet = Job(0, "init", self.folder)
        code, output = await self._call(quiet, ["init", *facts])
        if code:
            raise DataError(" ".join(quiet.said[-1:]).removeprefix("Error: "))
        return output

    def stop(self, job: Job) -> None:
        """Interrupt a command as Ctrl-C does: what it keeps stays in its folder."""
        if job.state == "running" and job.process is not None:
            job.state = "stopped"
            job.process.send_signal(signal.SIGINT)

    def stop_all(self) -> None:
        """Interrupt all that run."""
        for job in self.all.values():
            self.stop(job)

    async def _call(self, job: Job, words: Sequence[str]) -> tuple[int, str]:
        environment = {**os.environ, "COLUMNS": str(_COLUMNS), "NO_COLOR": "1"}
        ours, theirs = _terminal()
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "simcluster",
            *words,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=theirs if theirs is not None else asyncio.subprocess.PIPE,
            env=environment,
        )
        job.process = process
        if theirs is not None:
            os.close(theirs)
        assert process.stdout is not None
        reading = asyncio.create_task(_lines(ours, process.stderr, job))
        output = (await process.stdout.read()).decode("utf-8", "replace")
        code = await process.wait()
        await reading
        job.process = None
        return code, output


def _terminal() -> tuple[int | None, int | None]:
    """Return both ends of a terminal for standard error, where there are any: bars need one."""
    try:
        import pty
    except ImportError:  # not on Windows
        return None, None
    return pty.openpty()


async def _lines(terminal: int | None, stream: asyncio.StreamReader | None, job: Job) -> None:
    """Read lines to the end; a bar writes its line again and again after a carriage return."""
    if terminal is not None:
        reader = stream = asyncio.StreamReader()
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(terminal, "rb", buffering=0)
        )
    assert stream is not None
    rest = ""
    with contextlib.suppress(OSError):  # how the other end of a terminal goes away
        while piece := await stream.read(4096):
            rest = _take_lines(rest + piece.decode("utf-8", "replace"), job)
    job.read(rest)
    if terminal is not None:
        transport.close()


def _take_lines(text: str, job: Job) -> str:
    r"""Give a job its lines, and return the rest, whose end has not come yet.

    A carriage return before a new line is how a terminal ends a line; alone it is how a bar or a
    sign of life is written anew.

    >>> job = Job(1, "run", Path())
    >>> _take_lines("simulating: 2 s\rwarning: a\r\nhalf", job), job.said
    ('half', ['warning: a'])
    """
    while match := re.search(r"\r*\n|\r+(?=[^\r\n])", text):
        job.read(text[: match.start()], passing="\n" not in match[0])
        text = text[match.end() :]
    return text
