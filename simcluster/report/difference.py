"""What differs between two result folders: in the scenario, and in what came out."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from simcluster.errors import printable
from simcluster.frames.goodput import three_digits
from simcluster.report.kinds import read_study, whole, with_scenario
from simcluster.report.page import or_nan
from simcluster.runs import folder as store
from simcluster.runs.folder import rows_of
from simcluster.scenario.file import parsed
from simcluster.show.text import aligned
from simcluster.units import MS

SIGNS: Final = {"": "", "below": "< ", "above": ">= "}
"""What stands before a goodput that the rates of a sweep do not bracket, by ``censored``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """A figure of one strategy, with its 95 % interval as far as it is known."""

    value: float
    low: float = math.nan
    high: float = math.nan
    bound: str = ""
    """``"below"`` or ``"above"`` where the rates of a sweep did not bracket it: it is less than
    `value`, or at least as much."""

    def __str__(self) -> str:
        if math.isnan(self.value):
            return "-"
        text = SIGNS[self.bound] + three_digits(self.value)
        if math.isnan(self.low) or math.isnan(self.high):
            return text
        return f"{text} ({three_digits(self.low)}-{three_digits(self.high)})"

    def against(self, other: Figure) -> str:
        """Return how much more `other` is, and whether chance can have made that."""
        if math.isnan(self.value + other.value) or not self.value:
            return "-"
        if self.bound or other.bound:
            return "not known: a bound, no rate of the sweep is next to it"
        change = f"{100 * (other.value / self.value - 1):+.1f} %"
        if math.isnan(self.low + self.high + other.low + other.high):
            return f"{change}, how sure is not known"
        # Two intervals of 95 %: their half widths add as independent errors do.
        half = math.hypot((self.high - self.low) / 2, (other.high - other.low) / 2)
        sure = abs(other.value - self.value) > half
        return f"{change}, {'more than chance' if sure else 'within chance'}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """Of two result folders."""

    kinds: tuple[str, str]
    """``"runs"``, ``"goodput"``, ``"rank"`` or ``"cooptimize"``."""
    settings: Mapping[str, tuple[Any, Any]]
    """Values that differ, by dotted key; None where a folder has none."""
    outcomes: tuple[str, str]
    """What the outcome of each folder is, in words."""
    unit: str
    """What the figures are, with their unit; empty where the folders cannot be compared."""
    figures: Mapping[str, tuple[Figure | None, Figure | None]]
    """By strategy or candidate."""


def difference(first: str | Path, second: str | Path) -> Difference:
    """Return what differs between two result folders.

    Raises
    ------
    DataError
        If one is no result folder, or a file of it is damaged or of another version.
    """
    folders = Path(first), Path(second)
    found, others_found = map(with_scenario, folders)
    kinds = found[0], others_found[0]
    documents = [_flat(parsed(folder / "scenario.toml")) for folder in folders]
    for folder, kind, document in zip(folders, kinds, documents, strict=True):
        if kind == "runs":
            document |= _ran(folder)
    _fold_strategies(documents)
    keys = dict.fromkeys([*documents[0], *documents[1]])
    settings = {
        key: (documents[0].get(key), documents[1].get(key))
        for key in keys
        if documents[0].get(key) != documents[1].get(key)
    }
    (what, own), (other_what, others) = _outcome(*found), _outcome(*others_found)
    unit, figures = "", {}
    if what == other_what:
        unit = what
        names = dict.fromkeys([*own, *others])
        figures = {name: (own.get(name), others.get(name)) for name in names}
    return Difference(
        kinds=kinds, settings=settings, outcomes=(what, other_what), unit=unit, figures=figures
    )


def _ran(folder: Path) -> dict[str, Any]:
    """Return which runs of its scenario a folder holds."""
    rows = store.read(folder).rows
    return {
        f"(run) {name}": ", ".join(dict.fromkeys(f"{row[key]:g}" for row in rows))
        for name, key in (("rates", "rate_rps"), ("seeds", "seed"))
    } | {"(run) strategies": ", ".join(dict.fromkeys(str(row["strategy"]) for row in rows))}


def _fold_strategies(documents: list[dict[str, Any]]) -> None:
    """Put one line in the place of all settings of a strategy that only one scenario has."""
    names = [
        {key.removesuffix(".kind") for key in document if re.fullmatch(r"strategy\..*\.kind", key)}
        for document in documents
    ]
    for document, own, others in zip(documents, names, reversed(names), strict=True):
        for name in sorted(own - others):
            for key in [key for key in document if key.startswith(f"{name}.")]:
                del document[key]
            document[name] = "there"


def _flat(value: object, name: str = "") -> dict[str, Any]:
    """Return the values of tables by dotted key; tables in a list by their name or place."""
    if isinstance(value, dict):
        inner = [(f"{name}.{key}".lstrip("."), one) for key, one in value.items()]
    elif isinstance(value, list) and value and all(isinstance(one, dict) for one in value):
        inner = [(f"{name}.{one.get('name', i)}", one) for i, one in enumerate(value)]
    else:
        return {name: value}
    return {key: one for part, below in inner for key, one in _flat(below, part).items()}


def _outcome(kind: str, file: Path) -> tuple[str, dict[str, Figure]]:
    """Return what the figures of a folder are, and the figure of each strategy."""
    if kind == "runs":
        return _of_runs(file.parent)
    result = read_study(file)
    with whole(file):
        return _of_study(result, kind)


def _of_study(result: Mapping[str, Any], kind: str) -> tuple[str, dict[str, Figure]]:
    if kind == "goodput":
        users = result["unit"] == "users"
        key = "goodput_users" if users else "goodput_rps"
        rows = {row["strategy"]: row.get(key) for row in result["goodput"]}
        return f"goodput ({result['unit']})", {
            name: Figure(value=math.nan) if one is None else _interval(one)
            for name, one in rows.items()
        }
    if kind == "rank":
        return "goodput (requests/s)", {
            row["name"]: Figure(
                value=row["goodput_rps"],
                low=or_nan(row["interval_rps"][0]),
                high=or_nan(row["interval_rps"][1]),
            )
            for row in result["candidates"]
        }
    chosen = result["chosen"]
    return f"cost of the chosen plan ({result['currency']} per hour)", {
        "chosen plan": Figure(value=chosen["cost_per_hour"])
    }


def _interval(one: Mapping[str, float | None]) -> Figure:
    return Figure(value=or_nan(one["value"]), low=or_nan(one["low"]), high=or_nan(one["high"]))


def _of_runs(folder: Path) -> tuple[str, dict[str, Figure]]:
    comparison = store.read(folder)
    sweep = comparison.sweep
    if sweep["rate_rps"].nunique() > 1:
        return "goodput (requests/s)", {
            str(row["strategy"]): Figure(
                value=row["goodput_rps"],
                low=row["goodput_rps"] - row["goodput_rps_error"],
                high=row["goodput_rps"] + row["goodput_rps_error"],
                bound=row["censored"],
            )
            for row in rows_of(comparison.goodput)
        }
    means = sweep.groupby("strategy", sort=False).mean(numeric_only=True)
    figures: dict[str, Figure] = {}
    for name, row in zip(means.index, rows_of(means), strict=True):
        half = 2 * row["attainment_error"]
        share = row["slo_attainment"]
        within = f"{name}: within the targets (%)"
        figures[within] = Figure(
            value=100 * share, low=100 * max(0.0, share - half), high=100 * min(1.0, share + half)
        )
        figures[f"{name}: TTFT P95 (s)"] = Figure(value=row["ttft_s_p95"])
        figures[f"{name}: TPOT P95 (ms)"] = Figure(value=row["tpot_s_p95"] / MS)
    return "figures of single runs", figures


def as_text(found: Difference, names: tuple[str, str]) -> str:
    """Return a difference as two tables."""
    parts = []
    if found.settings:
        rows = [["setting", "A", "B"]]
        rows += [[key, *map(_shown, pair)] for key, pair in found.settings.items()]
        parts.append(aligned(rows, left=(0, 1, 2)))
    else:
        parts.append("The scenarios are the same.")
    if found.figures:
        rows = [[found.unit, "A", "B", "B against A"]]
        for name, (one, other) in found.figures.items():
            words = "-" if one is None or other is None else one.against(other)
            rows.append([printable(name), *(str(x or "-") for x in (one, other)), words])
        parts.append(aligned(rows, left=(0, 3)))
        parts.append("In brackets 95 % intervals, as far as they are known.")
    else:
        parts.append(
            f"Outcomes are not compared: they are not of one kind ({found.outcomes[0]} and "
            f"{found.outcomes[1]})."
        )
    heads = [f"{sign}: {printable(name)}" for sign, name in zip("AB", names, strict=True)]
    return "\n".join(heads) + "\n\n" + "\n\n".join(parts) + "\n"


def _shown(value: object) -> str:
    text = "-" if value is None else printable(str(value))
    return text if len(text) <= 28 else text[:25] + "..."


def as_json(found: Difference) -> dict[str, Any]:
    """Return a difference as plain values: NaN as None."""

    def plain(one: Figure | None) -> dict[str, float | str | None] | None:
        if one is None:
            return None
        values = {"value": one.value, "low": one.low, "high": one.high}
        finite = {key: value if math.isfinite(value) else None for key, value in values.items()}
        return {**finite, "bound": one.bound or None}

    return {
        "kinds": list(found.kinds),
        "settings": {key: list(pair) for key, pair in found.settings.items()},
        "outcomes": list(found.outcomes),
        "unit": found.unit,
        "figures": {key: [plain(one) for one in pair] for key, pair in found.figures.items()},
    }
