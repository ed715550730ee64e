"""The table ``[quality]``: where the quality of routed answers comes from."""

from __future__ import annotations

import csv
import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from simcluster.catalog import PACKAGED, Catalog
from simcluster.catalog.specs import QualityCounts
from simcluster.config import Settings
from simcluster.errors import ConfigError, DataError
from simcluster.quality import curve
from simcluster.quality.curve import QualityCurve
from simcluster.rng import stream
from simcluster.units import FloatArray, IntArray

COLUMNS = ("score", "weak_correct", "strong_correct")
"""Columns of a CSV of scored requests."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CommonQuality(Settings, ABC):
    """What every kind of quality takes."""

    length_correlation: Annotated[float, Field(gt=-1, lt=1)] = 0.0
    """Correlation of difficulty with prompt plus output length (of the normal scores of both):
    above 0, harder requests are longer."""

    @abstractmethod
    def curve(self) -> QualityCurve:
        """Return expected quality against the score."""

    def with_base(self, folder: Path) -> CommonQuality:
        """Return the same with paths that start at `folder`."""
        return self

    def with_entries(self, catalog: Catalog) -> CommonQuality:
        """Return the same with the counts of `catalog` in the place of their name."""
        return self

    def draw(self, prompt_len: IntArray, output_len: IntArray, seed: int) -> FloatArray:
        """Return the difficulty scores of the requests of a run, from the stream ``"scores"``.

        Parameters
        ----------
        prompt_len, output_len : ndarray of int64
            Tokens of the requests, shape ``(n,)``.
        seed : int
            Seed of the run.

        Returns
        -------
        ndarray of float64
            0 to 1, shape ``(n,)``; uniform.
        """
        rng, rho = stream(seed, "scores"), self.length_correlation
        if rho == 0:
            return rng.random(len(prompt_len))
        total = prompt_len + output_len
        # Ties are broken by position: equal lengths must not share one difficulty.
        rank = np.empty(len(total))
        rank[np.argsort(total, kind="stable")] = np.arange(len(total))
        length = curve.normal_quantile((rank + 0.5) / len(total))
        noise = rng.standard_normal(len(total))
        return curve.normal_cdf(rho * length + math.sqrt(1 - rho**2) * noise)


Router = Literal["noisy", "oracle", "random"]


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredQuality(CommonQuality):
    """Counts of who answered right, of a weak and a strong model, and a router."""

    kind: Literal["measured"] = "measured"
    benchmark: Annotated[str, Field(min_length=1)]
    """Counts of the catalogue, such as gsm8k-routellm."""
    router: Router = "noisy"
    """noisy: sees who gains under Gaussian noise; oracle: knows who gains; random: knows
    nothing."""
    separation: Annotated[float | None, Field(ge=0, le=30)] = None
    """Of the noisy router: distance of a gain from none, in standard deviations of the noise;
    default: as calibrated to the published router."""

    def curve(self) -> QualityCurve:
        """Return expected quality against the score, of the packaged counts of this name."""
        return self.with_entries(PACKAGED).curve()

    def with_entries(self, catalog: Catalog) -> CountedQuality:
        """Return the quality of the counts themselves."""
        return CountedQuality(
            length_correlation=self.length_correlation,
            measured=catalog.quality(self.benchmark),
            router=self.router,
            separation=self.separation,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class CountedQuality(CommonQuality):
    """What `MeasuredQuality` is in a scenario: the counts in the place of their name."""

    measured: QualityCounts
    """Who answered right, and the operating point of a published router."""
    router: Router
    separation: float | None
    """As in `MeasuredQuality`."""

    def curve(self) -> QualityCurve:
        """Return expected quality against the score."""
        measured = self.measured
        counts = measured.counts
        if self.router == "oracle":
            return curve.oracle(*counts)
        if self.router == "random":
            return curve.noisy(*counts, 0.0)
        separation = self.separation
        if separation is None:
            quality = measured.kept_quality * (counts[0] + counts[1]) / sum(counts)
            separation = _calibrated(counts, measured.strong_share, quality)
        return curve.noisy(*counts, separation)


@dataclass(frozen=True, slots=True, kw_only=True)
class CsvQuality(CommonQuality):
    """Scored requests of one's own with the outcome of a weak and a strong model."""

    kind: Literal["csv"] = "csv"
    path: Annotated[str, Field(min_length=1)]
    """CSV with the columns score (0 to 1, higher is harder), weak_correct and strong_correct (0 to
    1), relative to the scenario file."""

    def curve(self) -> QualityCurve:
        """Return expected quality against the score."""
        rows = read_outcomes(Path(self.path))
        return curve.from_outcomes(rows[:, 0], rows[:, 1:])

    def with_base(self, folder: Path) -> CsvQuality:
        """Return the same with paths that start at `folder`."""
        return replace(self, path=str(folder / self.path))


@dataclass(frozen=True, slots=True, kw_only=True)
class PointsQuality(CommonQuality):
    """Points of quality against the load fraction of the strong model."""

    kind: Literal["points"] = "points"
    points: Annotated[tuple[tuple[float, float], ...], Field(min_length=2)]
    """Pairs of the strong model's load fraction, from 0 to 1, and quality."""

    def curve(self) -> QualityCurve:
        """Return expected quality against the score."""
        return curve.from_points(self.points)

    def __post_init__(self) -> None:
        shares = [share for share, _ in self.points]
        if shares[0] != 0 or shares[-1] != 1 or any(b <= a for a, b in pairwise(shares)):
            raise ConfigError(
                "quality.points",
                str([list(p) for p in self.points]),
                "the load fractions of the strong model must rise from 0 to 1",
                "Begin with [0, quality of the weak model], end with [1, that of the strong].",
            )
        strong = self.points[-1][1]
        for (s0, q0), (s1, q1) in pairwise(self.points):
            gain = (q1 - q0) / (s1 - s0)
            if not (0 <= q0 <= 1 and 0 <= strong <= 1 and strong - 1 <= gain <= strong):
                raise ConfigError(
                    "quality.points",
                    f"[{s0}, {q0}], [{s1}, {q1}]",
                    "qualities are 0 to 1, and no request can gain more than the strong model's "
                    f"quality ({strong:g}) or lose more than {1 - strong:g}",
                    "Correct the points; a score out of 10 is divided by 10.",
                )


@dataclass(frozen=True, slots=True, kw_only=True)
class AbilitiesQuality(CommonQuality):
    """Accuracies of two or more models, and how much the router's score tells."""

    kind: Literal["abilities"] = "abilities"
    accuracies: Annotated[tuple[Annotated[float, Field(gt=0, lt=1)], ...], Field(min_length=2)]
    """Accuracy of each model alone, rising."""
    separation: Annotated[float, Field(ge=0, le=30)] = 1.0
    """How much the score tells: probability of a right answer is Phi(a - separation x normal
    score); 0: nothing."""

    def curve(self) -> QualityCurve:
        """Return expected quality against the score."""
        return curve.from_abilities(self.accuracies, self.separation)

    def __post_init__(self) -> None:
        if any(b <= a for a, b in pairwise(self.accuracies)):
            raise ConfigError(
                "quality.accuracies",
                str(list(self.accuracies)),
                "must rise: models stand in order of quality",
                "Order the models from the weakest to the strongest.",
            )


Quality = MeasuredQuality | CsvQuality | PointsQuality | AbilitiesQuality
"""Any of the kinds of ``[quality]``."""


@cache
def _calibrated(
    counts: tuple[float, float, float, float], strong_share: float, quality: float
) -> float:
    return curve.calibrated_separation(counts, strong_share, quality)


def read_outcomes(path: Path) -> FloatArray:
    """Read a CSV of scored requests.

    Returns
    -------
    ndarray of float64
        Shape ``(n, 3)``: score, quality of the weak and of the strong model's answer.

    Raises
    ------
    DataError
        If the file cannot be read, lacks a column, or a value is not a number from 0 to 1; the
        line says which row, counted from 1 after the header.
    """
    try:
        with path.open(encoding="utf-8", newline="") as lines:
            reader = csv.DictReader(lines)
            names = [name.strip() for name in reader.fieldnames or ()]
            reader.fieldnames = names
            missing = [name for name in COLUMNS if name not in names]
            if missing:
                raise DataError(
                    f"{path}: has no column {' or '.join(missing)}. A quality file has the columns "
                    f"{', '.join(COLUMNS)}."
                )
            rows = [
                [_share(row[name], name, number, path) for name in COLUMNS]
                for number, row in enumerate(reader, start=1)
            ]
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}). Give a CSV file.") from None
    except (UnicodeDecodeError, csv.Error):
        raise DataError(f"{path}: is not a CSV file in UTF-8.") from None
    if not rows:
        raise DataError(f"{path}: holds no rows below its header.")
    return np.array(rows)


def _share(text: str | None, name: str, row: int, path: Path) -> float:
    try:
        value = float(text or "")
    except ValueError:
        value = math.nan
    if not 0 <= value <= 1:
        problem = "is out of range" if not math.isnan(value) else "is not a number"
        raise DataError(
            f"{path}: row {row}: {name} = {text!r} {problem}. It must be a number from 0 to 1."
        )
    return value
