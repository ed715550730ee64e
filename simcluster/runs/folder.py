"""Result folders: written whole or not at all, read back as frames.

A folder holds ``scenario.toml`` (every default filled in), ``meta.json`` (version, seeds, cells),
``sweep`` (one row per cell) and the frames of each run (``requests``, ``spans``, ...): of a single
run beside them, of a comparison in ``cells/NAME``. Nothing in it depends on the clock, so the same
scenario gives the same bytes.
"""

from __future__ import annotations

import contextlib
import csv
import json
import logging
import os
import re
import tempfile
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final, Literal

import numpy as np
import numpy.typing as npt
from pydantic import TypeAdapter

from simcluster._version import __version__
from simcluster.catalog.toml_writer import to_toml
from simcluster.config import SloConfig
from simcluster.errors import DataError, nearest, printable
from simcluster.frames import packed
from simcluster.frames.goodput import goodput_table, wanted_shares
from simcluster.frames.metrics import LATENCIES, STATISTICS, SweepRow
from simcluster.frames.schema import Columns, Schema, frame, schema_of, table
from simcluster.runs import output
from simcluster.runs.cell import Cell, identity, inputs, made_by
from simcluster.runs.recorded import (
    MANIFEST,
    Label,
    publish,
    recorded,
    refuse_loss,
    scratch,
    take_over,
    write_manifest,
)
from simcluster.runs.result import FRAMES, SUMMARY_FRAMES, Kept, not_kept
from simcluster.runs.views import Viewed
from simcluster.scenario import arguments
from simcluster.scenario.check import validated
from simcluster.scenario.file import resolve
from simcluster.scenario.scenario import Scenario

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

Format = Literal["parquet", "csv"]
FORMATS: Final[tuple[Format, ...]] = ("parquet", "csv")
_ROW_GROUP: Final = 1 << 16
"""Rows that are written to a Parquet file at once."""
FIGURES: Final = "figures"
"""Subfolder for pictures of the results."""

_log = logging.getLogger("simcluster")

_META, _SCENARIO, _CELLS = "meta.json", "scenario.toml", "cells"
_OWN = {_META, _SCENARIO, _CELLS, FIGURES, MANIFEST} | {
    f"{n}.{f}" for n in (*FRAMES, "sweep") for f in FORMATS
}


def cell_names(cells: Sequence[Cell]) -> dict[Cell, str]:
    """Return a name for each cell that can be a folder's.

    >>> list(cell_names([Cell("vLLM 0.7", 12.0, 0), Cell("vLLM-0.7", 0.5, 0)]).values())
    ['vllm-0.7-r12-s0', 'vllm-0.7~2-r0.5-s0']
    """
    slugs: dict[str, str] = {}
    for cell in cells:
        if cell.strategy not in slugs:
            slug = re.sub(r"[^a-z0-9.]+", "-", cell.strategy.lower()).strip("-.")[:40] or "strategy"
            taken = sum(other.split("~")[0] == slug for other in slugs.values())
            slugs[cell.strategy] = f"{slug}~{taken + 1}" if taken else slug
    return {
        cell: slugs[cell.strategy]
        + ("" if cell.rate_rps is None else f"-r{cell.rate_rps!r}".removesuffix(".0"))
        + f"-s{cell.seed}"
        for cell in cells
    }


def sweep_columns(rows: Sequence[SweepRow]) -> dict[str, npt.NDArray[Any]]:
    """Return sweep rows as the columns of the sweep frame."""
    return {
        name: np.array([row[name] for row in rows], dtype=object if c.dtype == "str" else c.dtype)
        for name, c in schema_of("sweep", rows[0] if rows else ()).items()
    }


def rows_of(sweep: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the rows of a frame as dicts by column."""
    names = [str(name) for name in sweep.columns]
    return [dict(zip(names, row, strict=True)) for row in sweep.itertuples(index=False)]


# Frames on disk ---------------------------------------------------------------------------------


def write_frame(columns: Columns, name: str, folder: Path, fmt: Format) -> None:
    """Write one frame as ``folder/name.fmt``; the same columns give the same bytes."""
    path, schema = folder / f"{name}.{fmt}", schema_of(name, columns)
    if fmt == "csv":
        frame(columns, schema).to_csv(path, index=False, lineterminator="\n")
    else:
        import pyarrow.parquet as pq

        # A group at a time: what is being encoded takes as much memory as the rows themselves.
        groups = (
            table(packed.rows_of(columns, first, first + _ROW_GROUP), schema)
            for first in range(0, max(packed.num_rows(columns), 1), _ROW_GROUP)
        )
        group = next(groups)
        # Times and counts hardly repeat: looking for repetitions takes longer than it saves.
        texts = [n for n, column in schema.items() if column.dtype == "str"]
        with pq.ParquetWriter(
            path, group.schema, compression="zstd", use_dictionary=texts or False
        ) as file:
            for rows in chain([group], groups):
                file.write_table(rows)


_LATER: Final = (
    frozenset(
        (
            "mean_gpus",
            "rates_from_s",
            "rates_to_s",
            "itl_attainment",
            "e2el_attainment",
            "attainment_error",
        )
    )
    | {f"itl_s_{stat}" for stat in STATISTICS}
    | {f"{name}_p95" for name in LATENCIES}
)
"""Columns of the sweep frame that folders of earlier versions lack; unknown there (NaN)."""


_UNREADABLE: Final = (
    OSError,
    ValueError,
    TypeError,
    KeyError,
    OverflowError,
    NotImplementedError,
    MemoryError,
)
"""What readers of damaged files raise; sizes in a damaged file may be more than memory."""


def read_frame(name: str, folder: Path) -> pd.DataFrame:
    """Return one frame of `folder`, typed as in memory.

    Raises
    ------
    DataError
        If the frame is not there, is damaged, or lacks columns that an earlier version did not
        write.
    """
    try:
        if (path := folder / f"{name}.csv").exists():
            with path.open(encoding="utf-8", newline="") as lines:
                head, *rows = csv.reader(lines)
            texts = dict(
                zip(head, zip(*rows, strict=True) if rows else [()] * len(head), strict=True)
            )
            schema = _schema_there(name, head, path)
            columns = {n: _parsed(texts[n], c.dtype) for n, c in schema.items() if n in texts}
        else:
            import pyarrow.parquet as pq

            path = folder / f"{name}.parquet"
            if name in FRAMES and not path.exists() and (folder / MANIFEST).exists():
                kept = {p.stem for p in folder.iterdir()} & set(FRAMES)
                if kept == set(SUMMARY_FRAMES):
                    raise not_kept(name)
            arrow = pq.read_table(path)
            head = arrow.column_names
            schema = _schema_there(name, head, path)
            columns = {n: arrow.column(n).to_numpy() for n in schema if n in head}
        if name == "sweep":
            num_rows = len(columns["seed"])
            columns |= {n: np.full(num_rows, np.nan) for n in _LATER if n not in columns}
        return frame(columns, schema)
    except _UNREADABLE as error:
        reason = printable(str(error).partition("\n")[0])
        remedy = "Write the folder again with -o."
        raise DataError(f"{path}: cannot be read ({reason}). {remedy}") from None


def _schema_there(name: str, head: Sequence[str], path: Path) -> Schema:
    """Return the schema of a frame on disk whose columns are `head`.

    Raises
    ------
    DataError
        If columns are missing, other than those of the sweep that are read as NaN.
    """
    schema = schema_of(name, head)
    missing = [n for n in schema if n not in head and not (name == "sweep" and n in _LATER)]
    if missing:
        more = f" and {len(missing) - 1} more" if missing[1:] else ""
        raise DataError(
            f"{path}: has no column {missing[0]}{more}: an earlier version of simcluster wrote it, "
            "or it was changed. Run the scenario again with -o, or read it with that version."
        )
    return schema


def _parsed(texts: Sequence[str], dtype: str) -> npt.NDArray[Any]:
    """Return one column of a CSV file; Python reads back the very floats that were written."""
    if dtype == "float64":
        return np.array([float(text) if text else np.nan for text in texts], dtype=np.float64)
    if dtype == "bool":
        return np.array([text == "True" for text in texts], dtype=np.bool_)
    if dtype == "str":
        return np.array(texts, dtype=object)
    return np.array([int(text) for text in texts], dtype=dtype)


# Result folders ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Encoded:
    """The files of a run, made where it was run: compressed, to be written where they belong."""

    files: Mapping[str, bytes]
    """By name."""

    @classmethod
    def of(cls, frames: Mapping[str, Columns], row: SweepRow, fmt: Format) -> Encoded:
        """Return the files that `frames` and `row` make in a result folder."""
        with tempfile.TemporaryDirectory() as name:
            _write_frames(Path(name), frames, row, fmt)
            return cls({path.name: path.read_bytes() for path in sorted(Path(name).iterdir())})


Outcome = tuple[SweepRow, Mapping[str, Columns] | Encoded]
"""What a comparison keeps of a run: its row, and its frames where no folder has them."""


def _write_frames(folder: Path, frames: Mapping[str, Columns], row: SweepRow, fmt: Format) -> None:
    for name in FRAMES:
        if name in frames:
            write_frame(frames[name], name, folder, fmt)
    write_frame(sweep_columns([row]), "sweep", folder, fmt)


@dataclass(frozen=True, slots=True)
class Unfinished:
    """A result folder that is being written, a hidden sibling of the final one."""

    folder: Path
    """Where to write."""
    names: dict[Cell, str]
    """Path of each cell in `folder`; ``"."`` for a single run."""
    labels: dict[Cell, Label]
    """What each cell is; the name of its folder stands in ``about["name"]``."""
    fmt: Format
    """Format of the frames."""

    def write(self, cell: Cell, frames: Mapping[str, Columns] | Encoded, row: SweepRow) -> None:
        """Write one run: its frames and its row from `metrics.summarise`, all at once."""
        final = self.folder / self.names[cell]
        unfinished = scratch(final if final != self.folder else self.folder / "run")
        if isinstance(frames, Encoded):
            for name, content in frames.files.items():
                (unfinished / name).write_bytes(content)
        else:
            _write_frames(unfinished, frames, row, self.fmt)
        write_manifest(unfinished, self.labels[cell], self.fmt)
        if final == self.folder:
            for path in sorted(unfinished.iterdir()):
                path.rename(final / path.name)
            unfinished.rmdir()
        else:
            publish(unfinished, final)

    def has(self, cell: Cell) -> bool:
        """Whether a cell of a comparison is already there."""
        return self.names[cell] != "." and (self.folder / self.names[cell]).is_dir()

    def read(self, _: Scenario, cell: Cell) -> Outcome | None:
        """Return the sweep row of a cell that is already there."""
        if not self.has(cell):
            return None
        return rows_of(read_frame("sweep", self.folder / self.names[cell]))[0], {}

    def keep(self, outcome: Outcome, _: Scenario, cell: Cell) -> Outcome:
        """Write a run, if the process that did it has not, and return its row."""
        row, frames = outcome
        if frames:
            self.write(cell, frames, row)
        return row, {}

    def write_sweep(self, rows: Sequence[SweepRow]) -> None:
        """Write the sweep frame, in the order of the cells."""
        write_frame(sweep_columns(rows), "sweep", self.folder, self.fmt)


@contextlib.contextmanager
def writing(
    out: str | Path,
    scenario: Scenario,
    cells: Sequence[Cell],
    fmt: Format = "parquet",
    *,
    replace: bool = False,
) -> Iterator[Unfinished]:
    """Write a result folder: refused before any work if it cannot be, complete or absent after it.

    Runs of the comparison that are there already, in `out` or from one that was interrupted, are
    used again if they are whole and the same program made them; a warning is logged about others.

    Parameters
    ----------
    out : str or Path
        The folder. If it holds results, these must be runs of the same comparison, or of an
        earlier state of it.
    scenario : Scenario
        What is simulated.
    cells : sequence of Cell
        The runs. The frames of a single one lie at the top of the folder.
    fmt : str
        ``"parquet"`` or ``"csv"``.
    replace : bool
        Put these results in the place of any others of ours.

    Yields
    ------
    Unfinished
        Where to write. Whatever ends the block, finished cells of a comparison stay and the next
        one into the same folder goes on from them.

    Raises
    ------
    DataError
        If `out` cannot be written, holds something else, or runs would be lost that are not of
        this comparison.
    """
    out = Path(os.path.abspath(arguments.path("out", out, "Give the path of a folder.")))
    arguments.one_of("fmt", fmt, FORMATS, "a format of frames")
    _refuse_strangers(out)
    labels, names = _labels(scenario, cells)
    text = to_toml(scenario.document)
    meta = {
        "simcluster": __version__,
        "format": fmt,
        "seeds": sorted({c.seed for c in cells}),
        "inputs": inputs(scenario.document),
        "cells": list(names.values()),
    }
    with output.partial(out, _CELLS) as partial:
        found = recorded(partial) + recorded(out)
        if not replace:
            known = {label.identity: label.about["name"] for label in labels.values()}
            refuse_loss(out, found, known)
        sound: set[Path] = set()
        if "." in names.values():
            output.clear(partial)
        else:
            (partial / _CELLS).mkdir(exist_ok=True)
            places = {labels[cell].identity: Path(name).name for cell, name in names.items()}
            makers = {label.identity: label.made_by for label in labels.values()}
            sound = take_over(
                found, partial / _CELLS, lambda run: places.get(run.identity), makers, fmt
            )
        (partial / _SCENARIO).write_text(text, encoding="utf-8")
        (partial / _META).write_text(json.dumps(meta, indent=1) + "\n", encoding="utf-8")
        there = _same(out, text, meta) and all(out / name in sound for name in names.values())
        yield Unfinished(partial, names, labels, fmt)
        if there:
            (partial / f"sweep.{fmt}").replace(out / f"sweep.{fmt}")
            output.clear(partial)
        else:
            output.put_in_place(out, partial)


def _labels(scenario: Scenario, cells: Sequence[Cell]) -> tuple[dict[Cell, Label], dict[Cell, str]]:
    """Return what each cell is, and its path in the folder."""
    makers = {s.name: made_by(scenario, s.name) for s in scenario.strategies}
    labels = {
        cell: Label(identity(scenario, cell), makers[cell.strategy], {"name": name})
        for cell, name in cell_names(cells).items()
    }
    if len(cells) == 1:
        return labels, {cells[0]: "."}
    return labels, {
        cell: f"{_CELLS}/{label.about['name']}-{label.identity}" for cell, label in labels.items()
    }


def _refuse_strangers(out: Path) -> None:
    """Refuse an existing folder that holds anything but our results."""
    output.refuse_strangers(out, _OWN)
    if out.exists() and any(out.iterdir()) and not (out / _META).exists():
        advice = "Give another folder with -o."
        raise DataError(f"{out}: is not a result folder (no {_META}). {advice}")


def _same(out: Path, text: str, meta: Mapping[str, Any]) -> bool:
    """Tell whether `out` is a folder of the same scenario and the same cells."""
    try:
        same = (out / _SCENARIO).read_text(encoding="utf-8") == text
        return same and json.loads((out / _META).read_text(encoding="utf-8")) == meta
    except (OSError, ValueError):
        return False


# Results in hand --------------------------------------------------------------------------------


@dataclass(frozen=True, repr=False)
class Comparison(Viewed):
    """Runs of one scenario: a row for each, and their frames on demand.

    A single run is a comparison of one cell. A notebook shows it as a table; `to_frame`, `report`
    and the `plot_` methods show it otherwise.
    """

    _VIEW: ClassVar[str] = "simcluster.report.views"

    document: dict[str, Any]
    """The scenario file with all defaults filled in."""
    rows: Sequence[SweepRow]
    """One per cell, with the columns of `schema.SWEEP`."""
    _cells: Mapping[Cell, Path | Mapping[str, Columns]]
    _scenario: Scenario | None = None
    _inputs: Mapping[str, str] | None = None
    folder: Path | None = None
    """Where the runs were read from; None for those in hand."""

    def __repr__(self) -> str:
        names = dict.fromkeys(str(row["strategy"]) for row in self.rows)
        return f"Comparison({len(self.rows)} runs of {', '.join(names)})"

    @cached_property
    def scenario(self) -> Scenario:
        """The scenario of the runs.

        For results read from a folder it is made again from the document. A warning is logged for
        each file of machines or models that has changed since the runs.

        Raises
        ------
        ConfigError, DataError
            If the document names what is no longer there.
        """
        if self._scenario is not None:
            return self._scenario
        scenario = resolve(self.document)
        now = inputs({key: self.document.get(key) for key in ("catalog", "model", "extra_model")})
        for path, digest in now.items():
            if (self._inputs or {}).get(path, digest) != digest:
                _log.warning(
                    "%s has changed since these runs: what is computed from it now, such as step "
                    "times, need not be theirs",
                    path,
                )
        return scenario

    @cached_property
    def sweep(self) -> pd.DataFrame:
        """One row per cell (`schema.SWEEP`)."""
        columns = sweep_columns(self.rows)
        return frame(columns, schema_of("sweep", columns))

    @property
    def goodput(self) -> pd.DataFrame:
        """One row per strategy (`frames.goodput.goodput_table`)."""
        import pandas as pd

        price = self.document["cluster"].get("price_per_gpu_hour")
        if "extra_cluster" in self.document:  # GPUs of several prices: no one price is right
            price = None
        wanted = wanted_shares(validated(TypeAdapter(SloConfig), self.document["slo"]))
        return pd.DataFrame(goodput_table(self.sweep, wanted, price_per_gpu_hour=price))

    def plot_attainment(self, ax: Axes | None = None, **keywords: Any) -> Axes:
        """Draw attainment by offered rate (`show.plot.plot_attainment`), into new axes or `ax`."""
        return self._draw("plot_attainment", ax, **keywords)

    def plot_goodput(self, ax: Axes | None = None, **keywords: Any) -> Axes:
        """Draw a bar per strategy (`show.plot.plot_goodput_bars`)."""
        return self._draw("plot_goodput", ax, **keywords)

    def plot_ttft(self, ax: Axes | None = None, **keywords: Any) -> Axes:
        """Draw distributions of the TTFT; ``rate_rps`` and ``seed`` say of which runs.

        The default rate is the highest at which some strategy meets the targets.
        """
        return self._draw("plot_ttft", ax, **keywords)

    def plot_tpot(self, ax: Axes | None = None, **keywords: Any) -> Axes:
        """Draw distributions of the TPOT, as `plot_ttft`."""
        return self._draw("plot_tpot", ax, **keywords)

    def cells(self) -> list[Cell]:
        """Strategy, rate and seed of every run, in the order of the sweep."""
        return list(self._cells)

    def requests(
        self,
        strategy: str | None = None,
        rate_rps: float | None = None,
        seed: int | None = None,
        num_requests: int | None = None,
    ) -> pd.DataFrame:
        """Return one row per request (`schema.REQUESTS`) of one run.

        Parameters
        ----------
        strategy, rate_rps, seed, num_requests : str, float, int, int, optional
            Which run, as a `Cell` names it; what is left out may have only one value.

        Raises
        ------
        DataError
            If no run matches, or several do.
        """
        return self.frame("requests", strategy, rate_rps, seed, num_requests)

    def spans(self, *cell: Any, **which: Any) -> pd.DataFrame:
        """Return one row per span of equal steps (`schema.SPANS`); as `requests`."""
        return self.frame("spans", *cell, **which)

    def transfers(self, *cell: Any, **which: Any) -> pd.DataFrame:
        """Return one row per KV transfer (`schema.TRANSFERS`); as `requests`."""
        return self.frame("transfers", *cell, **which)

    def links(self, *cell: Any, **which: Any) -> pd.DataFrame:
        """Return bytes and utilisation of every link over time (`schema.LINKS`); as `requests`."""
        return self.frame("links", *cell, **which)

    def instances(self, *cell: Any, **which: Any) -> pd.DataFrame:
        """Return one row per instance (`schema.INSTANCES`); as `requests`."""
        return self.frame("instances", *cell, **which)

    def frames(self, cell: Cell) -> dict[str, Columns]:
        """Return all frames of one run as columns."""
        place = self._cells[cell]
        if not isinstance(place, Path):
            return Kept(place)
        return {name: self.columns(name, cell) for name in FRAMES}

    def columns(self, name: str, cell: Cell) -> Columns:
        """Return the frame called `name` of one run as columns."""
        place = self._cells[cell]
        if not isinstance(place, Path):
            return place[name]
        found = read_frame(name, place)
        return {column: found[column].to_numpy() for column in found.columns}

    def frame(
        self,
        name: str,
        strategy: str | None = None,
        rate_rps: float | None = None,
        seed: int | None = None,
        num_requests: int | None = None,
    ) -> pd.DataFrame:
        """Return the frame called `name`, one of ``result.FRAMES``, of one run.

        Parameters and errors as in `requests`.
        """
        found = list(self._cells)
        wanted = (strategy, rate_rps, seed, num_requests)
        for field, value in zip(Cell._fields, wanted, strict=True):
            known = list(dict.fromkeys(getattr(cell, field) for cell in found))
            if value is None and len(known) > 1:
                raise DataError(f"several runs differ in {field}: name one of {_listed(known)}")
            if value is not None:
                found = [cell for cell in found if getattr(cell, field) == value]
            if not found:
                hint = nearest(str(value), [str(k) for k in known])
                raise DataError(f"no run has {field} = {value!r}. {hint}")
        if name not in FRAMES:
            raise DataError(f"no frame is called {name!r}. {nearest(str(name), FRAMES)}")
        place = self._cells[found[0]]
        return (
            read_frame(name, place)
            if isinstance(place, Path)
            else frame(place[name], schema_of(name, place[name]))
        )


def _listed(values: Sequence[object]) -> str:
    return ", ".join(repr(v) for v in values)


def save(
    comparison: Comparison, out: str | Path, fmt: Format = "parquet", *, replace: bool = False
) -> None:
    """Write `comparison` as the result folder `out`; `replace` as in `writing`.

    Raises
    ------
    DataError
        If `out` cannot be written or holds something else.
    """
    cells, rows = comparison.cells(), comparison.rows
    with writing(out, comparison.scenario, cells, fmt, replace=replace) as folder:
        for cell, row in zip(cells, rows, strict=True):
            folder.write(cell, comparison.frames(cell), row)
        folder.write_sweep(rows)


def read(folder: str | Path) -> Comparison:
    """Return the results in `folder`; frames are read when they are asked for.

    Raises
    ------
    DataError
        If it is not a result folder, or one of another version's layout.
    """
    folder = arguments.path("folder", folder, "Give one that `simcluster compare -o` wrote.")
    try:
        meta = json.loads((folder / _META).read_text(encoding="utf-8"))
        document = tomllib.loads((folder / _SCENARIO).read_text(encoding="utf-8"))
        names, given = [str(name) for name in meta["cells"]], meta.get("inputs")
        # What a goodput is made of; the rest is read where it is asked for.
        float(document["slo"]["attainment"])
        float(document["cluster"].get("price_per_gpu_hour") or 0.0)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        if words := output.interrupted(folder):
            raise DataError(words) from None
        raise DataError(
            f"{folder}: is not a result folder. Give one that `simcluster compare -o` wrote."
        ) from None
    rows = rows_of(read_frame("sweep", folder))
    of_rows = cells_of(rows)
    if not len(names) == len(set(names)) == len(rows) == len(set(of_rows)):
        raise DataError(
            f"{folder}: {_META} lists {len(names)} runs and the sweep has {len(rows)} rows, which "
            "must be the same runs, each once: the folder is damaged. Write it again with -o."
        )
    cells = dict(zip(of_rows, map(folder.joinpath, names), strict=True))
    for row, path in zip(rows, cells.values(), strict=True):
        # Of an earlier version: without changes of scale the GPUs held are those there are.
        if np.isnan(row["mean_gpus"]) and not len(read_frame("scaling", path)):
            row["mean_gpus"] = float(row["num_gpus"])
    own = given if isinstance(given, dict) else None
    return Comparison(document, rows, cells, _inputs=own, folder=folder)


def cells_of(rows: Sequence[SweepRow]) -> list[Cell]:
    """Return strategy, rate and seed of each sweep row."""
    return [
        Cell(
            str(row["strategy"]),
            None if np.isnan(row["rate_rps"]) else float(row["rate_rps"]),
            int(row["seed"]),
        )
        for row in rows
    ]
