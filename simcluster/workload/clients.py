"""Arrivals of many clients, each with its own rate, burstiness and lengths (ServeGen).

Xiang et al. 2025, "ServeGen: Workload Characterization and Generation of Large Language Model
Serving in Production" (arXiv 2505.09999): production traffic is the sum of few clients that differ
much, and keeping them apart keeps the burstiness and the mix of lengths that one distribution for
all loses. Here each client is a stationary renewal process with gamma or Weibull gaps of its
measured mean rate and coefficient of variation. Not modelled: the course of the day (a client's
rate is its mean over the measured days), the dependence of output on prompt within a client
(only the marginal quantiles are published), conversations.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field

from simcluster.config import Settings
from simcluster.errors import ConfigError, DataError
from simcluster.rng import stream
from simcluster.units import FloatArray, IntArray
from simcluster.workload.base import (
    DEFAULT_NUM_REQUESTS,
    ArrivalTimes,
    Offer,
    arrivals_before,
    joined,
)
from simcluster.workload.classes import choices
from simcluster.workload.files import Table, read_csv
from simcluster.workload.lengths import Quantiles

BLOCK = 1024
"""Gaps drawn at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Client:
    """One row of a clients file."""

    client_id: str
    """Its name in the file."""
    rate_rps: float
    """Mean rate (requests/s), > 0."""
    cv: float
    """Coefficient of variation of the gaps, > 0."""
    pattern: str
    """``"Gamma"`` or ``"Weibull"``: distribution of the gaps."""
    prompt: Quantiles | None
    output: Quantiles | None
    """Lengths; None where the file has none."""

    def arrivals(self, mean_gap: float, until: float, rng: np.random.Generator) -> FloatArray:
        """Return all arrivals up to `until` and one or more after it, sorted.

        The process is stationary: the first gap is the rest of a gap under way (a uniform share
        of one drawn in proportion to its length), so that the clients do not all start with a
        burst.
        """
        is_gamma = self.pattern == "Gamma"
        if is_gamma:
            shape = 1.0 / self.cv**2
            scale = mean_gap / shape
            gap_under_way = scale * rng.standard_gamma(shape + 1.0)
        else:
            shape = weibull_shape(self.cv)
            scale = mean_gap / math.gamma(1.0 + 1.0 / shape)
            gap_under_way = scale * rng.standard_gamma(1.0 + 1.0 / shape) ** (1.0 / shape)
        blocks = [np.array([rng.random() * gap_under_way])]
        while blocks[-1][-1] <= until:
            gaps = rng.standard_gamma(shape, BLOCK) if is_gamma else rng.weibull(shape, BLOCK)
            blocks.append(np.cumsum(np.concatenate((blocks[-1][-1:], gaps * scale)))[1:])
        return np.concatenate(blocks)


def weibull_shape(cv: float) -> float:
    """Return the shape of the Weibull distribution whose coefficient of variation is `cv`.

    Parameters
    ----------
    cv : float
        Standard deviation over mean, > 0; the shape is sought between 0.01 and 1000.

    Notes
    -----
    Solves ``gamma(1 + 2/k) / gamma(1 + 1/k)^2 = 1 + cv^2`` by bisection of log k; the left side
    falls with k.
    """
    low, high = math.log(0.01), math.log(1000.0)
    wanted = math.log1p(cv * cv)
    for _ in range(60):
        middle = (low + high) / 2
        k = math.exp(middle)
        if math.lgamma(1 + 2 / k) - 2 * math.lgamma(1 + 1 / k) > wanted:
            low = middle
        else:
            high = middle
    return math.exp((low + high) / 2)


@dataclass(frozen=True, slots=True)
class ClientLengths:
    """Lengths of requests whose clients are known."""

    clients: tuple[Client, ...]
    """All with lengths."""
    labels: IntArray
    """Which client each request is from, shape ``(num_requests,)``."""

    def draw(self, num_requests: int, rng: np.random.Generator) -> tuple[IntArray, IntArray]:
        """Return prompt and output lengths (tokens), drawn independently of each other."""
        levels = rng.random((num_requests, 2))
        lengths = np.ones((num_requests, 2), dtype=np.int64)
        for label, client in enumerate(self.clients):
            own = self.labels[:num_requests] == label
            assert client.prompt is not None
            assert client.output is not None
            lengths[own, 0] = client.prompt.at(levels[own, 0])
            lengths[own, 1] = client.output.at(levels[own, 1])
        return lengths[:, 0].copy(), lengths[:, 1].copy()


@dataclass(frozen=True, slots=True)
class TypicalClient:
    """Lengths of requests each of which is from any client, by their rates."""

    clients: tuple[Client, ...]
    """All with lengths."""

    def draw(self, num_requests: int, rng: np.random.Generator) -> tuple[IntArray, IntArray]:
        """Return prompt and output lengths (tokens)."""
        of_client, own = rng.spawn(2)
        rates = np.array([client.rate_rps for client in self.clients])
        labels = choices(tuple(rates / rates.sum()), num_requests, of_client)
        return ClientLengths(self.clients, labels).draw(num_requests, own)


@dataclass(frozen=True, slots=True)
class Mixture:
    """The sum of some clients."""

    clients: tuple[Client, ...]

    @property
    def rate_rps(self) -> float:
        """Sum of the clients' rates (requests/s)."""
        return sum(client.rate_rps for client in self.clients)

    def points(self, num_requests: int, seed: int) -> tuple[FloatArray, IntArray]:
        """Return the first arrivals at a total rate of 1, sorted, and whose they are."""
        until = num_requests + 4 * math.sqrt(num_requests)
        while True:
            each = [
                client.arrivals(
                    self.rate_rps / client.rate_rps,
                    until,
                    stream(seed, "arrivals", f"client-{client.client_id}"),
                )
                for client in self.clients
            ]
            points = np.concatenate(each)
            labels = np.repeat(np.arange(len(each)), [len(own) for own in each])
            order = np.argsort(points, kind="stable")[:num_requests]
            if len(order) == num_requests and points[order[-1]] <= until:
                return points[order], labels[order]
            until *= 1.5


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientArrivals(Settings):
    """The sum of the clients of a ServeGen clients file; the files are not shipped."""

    has_lengths: ClassVar[bool] = True

    kind: Literal["clients"] = "clients"
    path: Annotated[str, Field(min_length=1)]
    """Clients file, or the folder of <model>_clients.csv.gz."""
    model: Annotated[str | None, Field(min_length=1)] = None
    """Which model's clients, where path is a folder."""
    num_clients: Annotated[int | None, Field(ge=1, le=1_000_000)] = None
    """Only this number of clients, the busiest; default: all."""

    def with_base(self, folder: Path) -> ClientArrivals:
        """Return the same with a relative path taken from `folder`."""
        return replace(self, path=joined(folder, self.path))

    @property
    def file(self) -> Path:
        """The clients file.

        Raises
        ------
        ConfigError
            If `path` is a folder without the clients of `model`.
        """
        folder = Path(self.path)
        if not folder.is_dir():
            return folder
        names = sorted(f.name.split("_clients.csv")[0] for f in folder.glob("*_clients.csv*"))
        if self.model not in names:
            raise ConfigError(
                "workload.arrivals.model",
                self.model,
                f"{self.path} holds the clients of {', '.join(names) or 'no model'}",
                "Name one of these models, or another folder." if names else "Name another folder.",
            )
        return next(folder.glob(f"{self.model}_clients.csv*"))

    def _clients(self, *, needs_lengths: bool) -> tuple[list[Client], tuple[str, ...]]:
        """Return the clients that take part, and who does not."""
        file = self.file
        clients = read_clients(file)
        if not needs_lengths:
            return clients, ()
        known = [c for c in clients if c.prompt is not None and c.output is not None]
        if not known:
            raise DataError(
                f"{file}: no client has length columns. Set workload.lengths to draw the lengths "
                "from elsewhere."
            )
        if len(known) == len(clients):
            return clients, ()
        share = 1 - sum(c.rate_rps for c in known) / sum(c.rate_rps for c in clients)
        return known, (
            f"{file.name}: {len(clients) - len(known)} of {len(clients)} clients ({share:.0%} of "
            "the request rate) have no lengths and were left out.",
        )

    def rate_rps(self, *, needs_lengths: bool) -> float:
        """Return the sum of the clients' rates (requests/s)."""
        clients, _ = self._clients(needs_lengths=needs_lengths)
        return Mixture(tuple(clients[: self.num_clients])).rate_rps

    def typical_lengths(self) -> TypicalClient:
        """Return the lengths of a request from any of the clients, by their rates."""
        clients, _ = self._clients(needs_lengths=True)
        return TypicalClient(tuple(clients[: self.num_clients]))

    def notes(self) -> tuple[str, ...]:
        """Return what a reader of results should know about the file; it is read."""
        return self._clients(needs_lengths=True)[1]

    def draw(self, offer: Offer, seed: int) -> ArrivalTimes:
        """Return the arrivals of the run `seed` (see `ArrivalProcess`)."""
        clients, notes = self._clients(needs_lengths=offer.needs_lengths)
        mixture = Mixture(tuple(clients[: self.num_clients]))
        rate_rps = offer.rate_rps if offer.rate_rps is not None else mixture.rate_rps
        if offer.duration_s is None:
            num_requests = offer.num_requests or DEFAULT_NUM_REQUESTS
        else:
            num_requests = len(
                arrivals_before(
                    offer.duration_s, rate_rps, lambda num: mixture.points(num, seed)[0] / rate_rps
                )
            )
        points, labels = mixture.points(num_requests, seed)
        return ArrivalTimes(
            arrival_s=points / rate_rps,
            rate_rps=rate_rps,
            lengths=ClientLengths(mixture.clients, labels) if offer.needs_lengths else None,
            notes=notes,
        )


def read_clients(file: Path) -> list[Client]:
    """Read a ServeGen clients file, the busiest client first.

    Parameters
    ----------
    file : Path
        CSV, gzip or plain: ``client``, ``mean_rate`` (requests/s), ``cv_mean``, ``pattern_mode``
        (Gamma or Weibull) and, where known, ``input_tokens_q<level>`` and
        ``output_tokens_q<level>`` (tokens) with levels from 0 to 1. Clients of rate 0 are skipped.

    Raises
    ------
    DataError
        If the file cannot be read or a row breaks these rules.
    """
    table = read_csv(file)
    table.require("client", "mean_rate", "cv_mean", "pattern_mode")
    clients = []
    for row in range(len(table.rows)):
        rate_rps = table.number(row, "mean_rate")
        if rate_rps < 0:
            raise table.error(row, "mean_rate", "a rate is 0 or more", "Mend or drop the row.")
        if rate_rps == 0:
            continue
        cv = table.number(row, "cv_mean")
        if cv <= 0:
            raise table.error(row, "cv_mean", "must be above 0", "Mend or drop the row.")
        pattern = table.text(row, "pattern_mode")
        if pattern not in ("Gamma", "Weibull"):
            raise table.error(
                row, "pattern_mode", "must be Gamma or Weibull", "Mend or drop the row."
            )
        clients.append(
            Client(
                client_id=table.text(row, "client"),
                rate_rps=rate_rps,
                cv=cv,
                pattern=pattern,
                prompt=_quantiles(table, row, "input_tokens_q"),
                output=_quantiles(table, row, "output_tokens_q"),
            )
        )
    if not clients:
        raise DataError(f"{file}: no client has a rate above 0. Use another file.")
    return sorted(clients, key=lambda c: -c.rate_rps)


def _quantiles(table: Table, row: int, prefix: str) -> Quantiles | None:
    """Return the quantiles of one row, None where their columns are missing or empty.

    They are interpolated geometrically: against the means in the same file (weighted by rate,
    four models) that is off by 0-4 % for prompts and 1-6 % for outputs, linear by 3-8 % and
    4-17 %, because the last 0.1 % spans two decades.
    """
    columns = [c for c in table.columns if c.startswith(prefix)]
    if not columns or not table.text(row, columns[0]):
        return None
    levels = []
    for column in columns:
        try:
            levels.append(float(column.removeprefix(prefix)))
        except ValueError:
            raise DataError(
                f"{table.file}: column {column} is no quantile. Name it {prefix}<level>, with a "
                "level from 0 to 1."
            ) from None
    values = [table.number(row, column) for column in columns]
    for column, lower, value in zip(columns, [0.0, *values], values, strict=False):
        if value < lower:
            raise table.error(
                row, column, "quantiles must not fall from one to the next", "Mend or drop the row."
            )
    return Quantiles(np.array(levels), np.maximum(values, 1.0), geometric=True)
