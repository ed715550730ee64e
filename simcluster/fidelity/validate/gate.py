"""The gate: checks against the scores that were last accepted (``catalog/scores.toml``)."""

from __future__ import annotations

import datetime
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from simcluster._version import __version__
from simcluster.catalog.scores import (
    EMPTY,
    KindScore,
    Origin,
    Score,
    Scores,
    merged,
    read,
    to_toml,
)
from simcluster.errors import DataError
from simcluster.fidelity.validate.aic_kernels import DATA_SET as TABLES
from simcluster.fidelity.validate.aic_layouts import DATA_SET as LAYOUTS
from simcluster.fidelity.validate.aic_loops import FOLDER as FOLDER_OF_LOOPS
from simcluster.fidelity.validate.base import Check
from simcluster.fidelity.validate.board import kind_scores
from simcluster.fidelity.validate.eager_engines import DATA_SET as EAGER
from simcluster.fidelity.validate.ecoserve_prefill import DATA_SET as ECOSERVE
from simcluster.fidelity.validate.run import Validation
from simcluster.runs.output import write_whole

MARGIN: Final = 0.02
"""A governing error may grow by this share: two points."""
_NO_FOLDER: Final = {
    EAGER: Origin(
        "the sets splitwise_perf, sarathi_iter and distserve_fits, pooled", "as those of each"
    ),
    ECOSERVE: Origin("EcoServe, arXiv 2504.18154, table 3", "a publication; figures only"),
}
"""Sets without a folder, whose figures stand in the code."""
_FOLDERS: Final = {LAYOUTS: FOLDER_OF_LOOPS, TABLES: FOLDER_OF_LOOPS}
"""Sets that share the folder of another."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
    """Outcome of a comparison with committed scores."""

    failures: tuple[str, ...]
    """A line per check that is worse, is gone, or has fewer points."""
    notes: tuple[str, ...]
    """What was not compared."""
    num_compared: int
    made: str
    """When the scores were made."""

    @property
    def passed(self) -> bool:
        """Whether nothing failed and something was compared."""
        return not self.failures and self.num_compared > 0

    def text(self) -> str:
        """Return failures, notes and a closing line."""
        if not self.num_compared and not self.failures:
            end = "gate: nothing could be compared"
        else:
            worse = f"{len(self.failures)} failed" if self.failures else "none worse"
            end = (
                f"gate: {self.num_compared} checks against the scores of {self.made}: {worse} "
                f"(margin {100 * MARGIN:g} points)"
            )
        return "\n".join([*self.failures, *self.notes, end]) + "\n"


def score_of(item: Check) -> Score:
    """Return the statistics of a check."""
    return Score(
        item.data_set,
        item.gpu,
        item.model,
        item.regime,
        item.quantity,
        item.n,
        item.bias,
        item.median,
        item.mean,
        item.p90,
        item.limits,
    )


def compare(result: Validation, before: Scores) -> Gate:
    """Compare the checks of `result` with accepted scores of the same data sets.

    A check fails when its governing error is more than `MARGIN` above the accepted one, when it is
    not made any more, or when it has another number of points: then it says something else.
    """
    now = {score.key: score for score in (score_of(item) for item in result.checks if item.n)}
    made = set(result.made)
    due = [score for score in before.checks if score.data_set in made]
    failures = [line for old in due if (line := _failure(old, now.get(old.key)))]
    known = {score.key for score in before.checks}
    notes = [
        f"{_name(score)}: new, not compared; --update-gate takes it in"
        for score in now.values()
        if score.key not in known
    ]
    left = dict.fromkeys(s.data_set for s in before.checks if s.data_set not in made)
    if left:
        notes.append(f"not compared, absent or not asked for: {', '.join(left)}")
    compared = sum(old.key in now for old in due)
    return Gate(
        failures=tuple(failures), notes=tuple(notes), num_compared=compared, made=before.made
    )


def _name(score: Score) -> str:
    return ", ".join(part for part in score.key if part)


def _failure(old: Score, new: Score | None) -> str | None:
    """Return the line of a check that fails; None where it passes."""
    if new is None:
        return f"{_name(old)}: the check is not made any more; if that is meant, --update-gate"
    if new.n != old.n:
        return f"{_name(old)}: {new.n} points, {old.n} before; if that is meant, --update-gate"
    after = abs(float(getattr(new, old.limits)))
    if after <= old.value + MARGIN:
        return None  # a nan is not at most anything
    error = f"{old.limits} error" if old.limits != "bias" else "bias"
    return f"{_name(old)}: {error} {100 * old.value:.1f} % before, {100 * after:.1f} % now"


def updated(
    result: Validation, before: Scores, data_dir: Path, *, today: datetime.date | None = None
) -> Scores:
    """Return accepted scores with the sets of `result` in the place of their old ones."""
    found = [score_of(item) for item in result.checks if item.n]
    checks = merged(before.checks, found, result.made)
    names = dict.fromkeys(score.data_set for score in checks)
    made = set(result.made)
    kept = [kind for kind in before.kinds if kind.data_set not in made]
    origins = {
        name: _origin(data_dir, name) if name in made else before.origins[name] for name in names
    }
    kinds: list[KindScore] = [*kept, *kind_scores(result.checks)]
    return Scores(
        made=f"{today or datetime.date.today()}, version {__version__}",
        origins=dict(sorted(origins.items())),
        kinds=tuple(sorted(kinds, key=lambda one: (one.data_set, one.gpu, one.kind))),
        checks=checks,
    )


def _origin(data_dir: Path, name: str) -> Origin:
    """Return source and licence of a set, by the README of its folder."""
    if name in _NO_FOLDER:
        return _NO_FOLDER[name]
    path = data_dir / _FOLDERS.get(name, name) / "README.md"
    words = path.read_text(encoding="utf-8") if path.is_file() else ""
    said = [re.search(rf"^- {key}: *(.+)$", words, re.MULTILINE) for key in ("Source", "Licence")]
    source, licence = (found[1].strip() if found else "" for found in said)
    if not source or not licence:
        raise DataError(
            f"{path}: no line '- Source: ...' or '- Licence: ...'; scores are kept with both. "
            "Add them."
        )
    return Origin(source, licence)


def update(result: Validation, data_dir: Path, path: Path) -> Scores:
    """Write the scores of `result` to the file `path`, whole or not at all.

    Raises
    ------
    DataError
        If the file cannot be written, is not one of scores, or a set has no source.
    """
    scores = updated(result, read(path) if path.exists() else EMPTY, data_dir)
    try:
        write_whole(path, to_toml(scores))
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}") from None
    return scores
