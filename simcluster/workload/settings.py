"""Settings of the table ``[workload]``: which requests arrive, and when."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, TypeVar

from pydantic import Discriminator, Field, Tag

from simcluster.catalog import Catalog
from simcluster.config import Settings
from simcluster.errors import ConfigError, nearest
from simcluster.registry import KindIn, Registry
from simcluster.units import MAX_TIME_S
from simcluster.workload.base import (
    MAX_NUM_REQUESTS,
    MAX_RATE_RPS,
    ArrivalProcess,
    LengthDistribution,
    joined,
    with_defaults,
)
from simcluster.workload.classes import MixedLengths
from simcluster.workload.lengths import (
    FixedLengths,
    LognormalLengths,
    QuantileLengths,
    TableLengths,
    TabulatedLengths,
)
from simcluster.workload.renewal import ConstantArrivals, GammaArrivals, PoissonArrivals
from simcluster.workload.replay import TraceArrivals, TraceFile, TraceLengths, TraceReplay

ARRIVALS: Final[Registry[type[ArrivalProcess]]] = Registry(
    "simcluster.arrivals",
    {
        "poisson": PoissonArrivals,
        "gamma": GammaArrivals,
        "constant": ConstantArrivals,
        "on-off": "simcluster.workload.profiles:OnOffArrivals",
        "schedule": "simcluster.workload.profiles:ScheduleArrivals",
        "closed-loop": "simcluster.workload.closed_loop:ClosedLoopArrivals",
        "trace": TraceArrivals,
        "clients": "simcluster.workload.clients:ClientArrivals",
        "sessions": "simcluster.workload.sessions:SessionArrivals",
    },
)
"""Arrival processes by the ``kind`` of their table ``workload.arrivals``."""

LENGTHS: Final[Registry[type[LengthDistribution]]] = Registry(
    "simcluster.lengths",
    {
        "fixed": FixedLengths,
        "lognormal": LognormalLengths,
        "quantiles": QuantileLengths,
        "table": TableLengths,
        "trace": TraceLengths,
    },
)
"""Length distributions by the ``kind`` of their table ``workload.lengths``."""

if TYPE_CHECKING:
    ArrivalSettings = str | ArrivalProcess
    LengthSettings = str | LengthDistribution
else:
    ArrivalSettings = Annotated[Any, KindIn(ARRIVALS, "workload.arrivals")]
    LengthSettings = Annotated[Any, KindIn(LENGTHS, "workload.lengths")]

TraceSettings = Annotated[
    Annotated[str, Field(min_length=1), Tag("path")] | Annotated[TraceFile, Tag("TraceFile")],
    Discriminator(lambda value: "path" if isinstance(value, str) else "TraceFile"),
]

S = TypeVar("S")

_ROUNDING: Final = 1e-6
"""The shares of the classes may miss 1 by so much."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestClass(Settings):
    """A class of requests (a table ``[[workload.classes]]``); ``[slo.classes]`` has its targets."""

    name: Annotated[str, Field(pattern="^[A-Za-z0-9_-]+$")]
    """Name, of letters, digits, - and _; [slo.classes.NAME] has its targets."""
    share: Annotated[float, Field(gt=0, le=1)]
    """Share of the requests; those of all classes make 1."""
    lengths: LengthSettings | None = None
    """Lengths of its requests, as workload.lengths, which is the default."""
    priority: Annotated[int, Field(ge=-1_000_000, le=1_000_000)] = 0
    """Its requests go before those of classes with larger numbers, in a strategy with queue =
    "priority"."""

    @property
    def length_distribution(self) -> LengthDistribution | None:
        """Lengths of its own; None for those of the workload."""
        return _distribution(self.lengths)


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkloadSettings(Settings):
    """The table ``[workload]``."""

    lengths: LengthSettings | None = None
    """Name of a length table of the catalogue, or a table with its kind."""
    arrivals: ArrivalSettings | None = None
    """Name of an arrival process (default poisson), or a table with its kind."""
    trace: TraceSettings | None = None
    """Trace to replay, arrivals and lengths: a path or a table."""
    num_requests: Annotated[int | None, Field(ge=1, le=MAX_NUM_REQUESTS)] = None
    """Requests of a run; default 2000, all of a trace, one pass of a schedule."""
    duration_s: Annotated[float | None, Field(gt=0, le=MAX_TIME_S)] = None
    """Requests that arrive before this (s), instead of num_requests."""
    rate_rps: Annotated[float | None, Field(gt=0, le=MAX_RATE_RPS)] = None
    """Mean rate (requests/s) where no sweep gives one."""
    on_too_long: Literal["reject", "truncate", "error"] = "reject"
    """What becomes of a request longer than max_model_len: it counts as missed, is cut to fit, or
    stops the run."""
    classes: Annotated[tuple[RequestClass, ...] | None, Field(min_length=1)] = None
    """Classes of requests, each with targets of its own."""
    goodput_by: Literal["scale", "thin"] | None = None
    """How a search for a goodput brings a trace to a rate: its time scaled (the default), or
    requests and sessions left out at random, up to the trace's own rate."""

    def __post_init__(self) -> None:
        """Check that the keys fit together."""
        if self.trace is not None:
            for key, value in (("arrivals", self.arrivals), ("lengths", self.lengths)):
                if value is not None:
                    raise ConfigError(
                        f"workload.{key}",
                        value if isinstance(value, str) else None,
                        "workload.trace gives both arrivals and lengths",
                        f'Leave out one of the two keys, or write {key} = {{ kind = "trace", path '
                        "= ... } where only one shall come from the trace.",
                    )
        if self.num_requests is not None and self.duration_s is not None:
            raise ConfigError(
                "workload.duration_s",
                self.duration_s,
                f"num_requests ({self.num_requests}) is given too",
                "Leave out one of the two.",
            )
        if isinstance(self.arrivals, str) and self.arrivals not in ARRIVALS:
            raise ConfigError(
                "workload.arrivals",
                self.arrivals,
                "no such arrival process",
                nearest(self.arrivals, ARRIVALS),
            )
        self._check_classes()
        process = self.arrival_process
        if self.goodput_by is not None and not isinstance(process, TraceArrivals):
            rule = f"only a trace is scaled or thinned; the arrivals are {process.kind}"
            raise ConfigError("workload.goodput_by", self.goodput_by, rule, "Leave it out.")
        shared = self.classes is None or any(c.lengths is None for c in self.classes)
        if self.lengths is None and not process.has_lengths and shared:
            raise ConfigError(
                "workload.lengths",
                None,
                "missing",
                "Name a length table of the catalogue, or write lengths = { kind = ... } with one "
                f"of {', '.join(LENGTHS)}.",
            )

    def _check_classes(self) -> None:
        """Check names and shares, and that the classes go with arrivals and lengths."""
        if self.classes is None:
            return
        names = [c.name for c in self.classes]
        for i, name in enumerate(names):
            if name in names[:i]:
                rule = f"is also the name of classes[{names.index(name)}]"
                remedy = "Give each its own name."
                raise ConfigError(f"workload.classes[{i}].name", name, rule, remedy)
        total = math.fsum(c.share for c in self.classes)
        if abs(total - 1) > _ROUNDING:
            parts = " + ".join(f"{c.share:g}" for c in self.classes)
            rule = f"the shares of all classes must make 1; {parts} = {total:g}"
            raise ConfigError("workload.classes", None, rule, "Change a share, or add a class.")
        process = self.arrival_process
        if isinstance(process, TraceFile):
            raise ConfigError(
                "workload.classes",
                None,
                "a trace does not say the classes of its requests",
                "Leave the classes out, or use arrivals such as poisson.",
            )
        own = [i for i, c in enumerate(self.classes) if c.lengths is not None]
        if own and self.lengths is None and process.has_lengths:
            raise ConfigError(
                f"workload.classes[{own[0]}].lengths",
                None,
                f"{process.kind} arrivals come with lengths",
                "Leave it out, or give workload.lengths too.",
            )

    @property
    def shares(self) -> tuple[float, ...]:
        """Shares of the classes."""
        return tuple(c.share for c in self.classes or ())

    @property
    def arrival_process(self) -> ArrivalProcess:
        """The arrival process, whichever way it was written."""
        if isinstance(self.trace, str):
            return TraceReplay(path=self.trace)
        if self.trace is not None:
            trace = self.trace
            return TraceReplay(**{f.name: getattr(trace, f.name) for f in fields(trace)})
        if self.arrivals is None:
            return PoissonArrivals()
        if isinstance(self.arrivals, str):
            return with_defaults(ARRIVALS[self.arrivals], self.arrivals, "workload.arrivals")
        return self.arrivals

    @property
    def shared_lengths(self) -> LengthDistribution | None:
        """Lengths of the requests whose class has none; None: they come with the arrivals.

        Where every class has its own, those of the first, which then nobody takes.
        """
        if self.lengths is None and self.classes:
            return self.classes[0].length_distribution
        return _distribution(self.lengths)

    @property
    def length_distribution(self) -> LengthDistribution | None:
        """Lengths of all requests, whatever their class; None: they come with the arrivals."""
        shared = self.shared_lengths
        parts = [c.length_distribution or shared for c in self.classes or ()]
        known = tuple(part for part in parts if part is not None)
        if all(part is shared for part in parts) or len(known) < len(parts):
            return shared
        return MixedLengths(self.shares, known)

    def notes(self) -> tuple[str, ...]:
        """Return what a reader of results should know about the files that requests come from.

        Raises
        ------
        DataError
            If one cannot be read any more.
        """
        sources = [self.arrival_process, self.lengths, *(c.lengths for c in self.classes or ())]
        if self.lengths is not None and self.arrival_process.kind == "clients":
            del sources[0]  # its lengths do not count
        told = (getattr(source, "notes", tuple) for source in sources)
        return tuple(dict.fromkeys(note for notes in told for note in notes()))

    def knows_prefixes(self) -> bool:
        """Return whether requests say which blocks of tokens they have in common.

        Raises
        ------
        DataError
            If a trace cannot be read any more.
        """
        process = self.arrival_process
        if self.lengths is not None:
            return False
        if isinstance(process, TraceArrivals):
            return process.read().hashes is not None
        return process.kind == "sessions"

    def with_base(self, folder: Path) -> WorkloadSettings:
        """Return these settings with their relative paths taken from `folder`.

        Parameters
        ----------
        folder : Path
            The folder of the scenario file. A leading ``~`` of a path is the home folder.
        """
        trace = self.trace
        return replace(
            self,
            trace=joined(folder, trace) if isinstance(trace, str) else _moved(trace, folder),
            arrivals=_moved(self.arrivals, folder),
            lengths=_moved(self.lengths, folder),
            classes=self.classes
            and tuple(replace(c, lengths=_moved(c.lengths, folder)) for c in self.classes),
        )

    def with_entries(self, catalog: Catalog) -> WorkloadSettings:
        """Return these settings with the length tables of `catalog` in the place of their names.

        Raises
        ------
        ConfigError
            If the catalogue has no table of a name.
        """
        classes = self.classes and tuple(
            replace(c, lengths=_entry(c.lengths, catalog, f"workload.classes[{i}].lengths"))
            for i, c in enumerate(self.classes)
        )
        lengths = _entry(self.lengths, catalog, "workload.lengths")
        return replace(self, lengths=lengths, classes=classes)


def _distribution(lengths: LengthSettings | None) -> LengthDistribution | None:
    return TableLengths(name=lengths) if isinstance(lengths, str) else lengths


def _entry(lengths: LengthSettings | None, catalog: Catalog, key: str) -> LengthSettings | None:
    """Return `lengths`, the table itself where they are the name of one."""
    named = _distribution(lengths)
    if isinstance(named, TableLengths):
        return TabulatedLengths(catalog.lengths(named.name, key=key))
    return lengths


def _moved(settings: S, folder: Path) -> S:
    """Return `settings` with its path, where it has one, taken from `folder`."""
    with_base = getattr(settings, "with_base", None)
    return settings if with_base is None else with_base(folder)
