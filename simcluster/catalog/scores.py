"""Errors of simulated against measured times, as they were last accepted: ``scores.toml``.

The file has derived errors alone, no measured value. ``simcluster validate DATA --update-gate``
writes it, ``simcluster validate DATA --gate`` compares with it, and reports quote its kinds.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final, NamedTuple

from simcluster.catalog.parsed import parsed
from simcluster.errors import DataError

PACKAGED: Final = Path(__file__).with_name("scores.toml")
"""The committed file."""
_DIGITS: Final = 4  # of a share: a hundredth of a point


class Kind(NamedTuple):
    """What step times are computed for; errors are stated per kind."""

    model: str
    """``"dense"`` or ``"MoE"``."""
    bits: int
    """Of most weights: 16, 8 or 4."""
    link: str
    """Between the GPUs of a node: ``"NVLink"``, ``"PCIe"`` or the name of another link."""
    engine: str
    """Engine profile of the catalogue, which stands for a generation of the engine."""


class KindScore(NamedTuple):
    """Error of one quantity of one kind, on one GPU, against one data set."""

    kind: Kind
    gpu: str
    """Its name in the catalogue; several with commas between."""
    data_set: str
    quantity: str
    """``"TTFT"``, ``"TPOT"``, ``"E2E"``, ``"throughput"``; ``"prefill step"`` and ``"decode step"``
    where single steps were measured, not served requests."""
    n: int
    """Measured runs or steps."""
    error: float
    """Mean of the absolute errors of n; of a single run that of its mean (share)."""
    fit: str
    """``"held out"``, ``"fitted"``, or how many of them were fitted, as ``"3 of 45 fitted"``."""

    @property
    def fitted(self) -> bool:
        """Whether constants were fitted to all of them."""
        return self.fit == "fitted"


class Score(NamedTuple):
    """Errors of one check (shares), as in `simcluster.fidelity.validate.Check`."""

    data_set: str
    gpu: str
    model: str
    regime: str
    quantity: str
    n: int
    bias: float
    median: float
    mean: float
    p90: float
    limits: str
    """Its governing error: ``"mean"``, ``"median"``, ``"p90"`` or ``"bias"``."""

    @property
    def key(self) -> tuple[str, ...]:
        """What names the check."""
        return self[:5]

    @property
    def value(self) -> float:
        """The governing error, without sign."""
        return abs(float(getattr(self, self.limits)))


class Origin(NamedTuple):
    """Where a data set comes from."""

    source: str
    licence: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """A file of scores."""

    made: str
    """Date and version."""
    origins: dict[str, Origin]
    """By data set."""
    kinds: tuple[KindScore, ...]
    checks: tuple[Score, ...]


EMPTY: Final = Scores(made="", origins={}, kinds=(), checks=())


@cache
def committed() -> Scores:
    """Return the scores of the package."""
    return read(PACKAGED, parsed)


def _parsed_now(path: Path) -> dict[str, Any]:
    return tomllib.loads(path.read_text(encoding="utf-8"))


def read(path: Path, parse: Callable[[Path], dict[str, Any]] = _parsed_now) -> Scores:
    """Return the scores of a file, which `parse` gives as tables.

    Raises
    ------
    DataError
        If there is no such file or it is not one of scores.
    """
    try:
        return _scores(parse(path))
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}") from None
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        said = str(error).splitlines()[0]
        raise DataError(
            f"{path}: not a file of scores: {said}; `--update-gate` writes one"
        ) from None


def _scores(document: dict[str, Any]) -> Scores:
    checks = []
    for one in document["set"]:
        for row in one["checks"]:
            score = Score(one["name"], *row)
            if score.limits not in ("mean", "median", "p90", "bias") or not score.value >= 0:
                raise ValueError(f"set {score.data_set}, row {row}")
            checks.append(score)
    kinds = tuple(KindScore(Kind(*row[:4]), *row[4:]) for row in document["kinds"])
    if not all(isinstance(kind.error, float) for kind in kinds):
        raise ValueError("an error of a kind is not a number with a decimal point")
    origins = {one["name"]: Origin(one["source"], one["licence"]) for one in document["set"]}
    return Scores(made=document["made"], origins=origins, kinds=kinds, checks=tuple(checks))


_HEAD: Final = """\
# Errors of simulated against measured times: derived scores, no measured value.
# Written by `simcluster validate DATA --update-gate`, compared by `--gate`; not edited by hand.
# Errors are shares: 0.07 is 7 %. Source and licence are those of the measured sets.
"""


def to_toml(scores: Scores) -> str:
    """Return the text of a file of scores, one line per kind and per check."""
    lines = [
        _HEAD,
        f"made = {json.dumps(scores.made)}",
        "",
        "# model, bits, link, engine, GPU, data set, quantity, n, error, fitted or held out",
        "kinds = [",
        *(_row((*score.kind, *score[1:])) for score in scores.kinds),
        "]",
    ]
    for name, origin in scores.origins.items():
        lines += [
            "",
            "[[set]]",
            f"name = {json.dumps(name)}",
            f"source = {json.dumps(origin.source)}",
            f"licence = {json.dumps(origin.licence)}",
            "# GPU, model, regime, quantity, n, bias, median, mean, P90, governing error",
            "checks = [",
            *(_row(score[1:]) for score in scores.checks if score.data_set == name),
            "]",
        ]
    return "\n".join(lines) + "\n"


def _row(values: Sequence[Any]) -> str:
    # Text and whole numbers of JSON are those of TOML; nan is TOML's alone.
    shown = (
        repr(round(value, _DIGITS)) if isinstance(value, float) else json.dumps(value)
        for value in values
    )
    return f"  [{', '.join(shown)}],"


def merged(old: Iterable[Score], new: Iterable[Score], made: Iterable[str]) -> tuple[Score, ...]:
    """Return the scores of the sets `made` from `new`, those of all others as they were."""
    replaced = set(made)
    return (*(score for score in old if score.data_set not in replaced), *new)
