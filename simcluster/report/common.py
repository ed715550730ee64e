"""What all reports say: what is served, how far step times can be trusted, what is not modelled."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from simcluster.catalog.toml_writer import to_toml
from simcluster.frames.goodput import three_digits
from simcluster.report.page import Block, Bullets, Code, Section, Text
from simcluster.scenario.scenario import Scenario
from simcluster.show.text import all_notes, heading, targets
from simcluster.strategies import FuDG, NoDG, PaDG

NOT_MODELLED: Final = (
    "Tokens and weights (answer quality comes from measured curves); speculative decoding, "
    "adapters, images.",
    "A KV cache shared between instances, prefix caches that reuse parts of blocks, KV "
    "compression.",
    "How busy the busiest GPU is with uneven experts, beyond one number (expert_skew); padding to "
    "captured batch sizes; dense kernels of quantised weights beyond their bytes and peak rate; "
    "several tokens a step (MTP).",
    "Slow or failing machines; links between the sockets of a host and its memory bandwidth.",
    "Energy, spot prices. Prices are dated and quoted with their source; none is made up where "
    "none is known.",
)
"""The list of the README (`tests/report` holds the two together)."""
FAMILIES: Final = {
    "nodg": "NoDG, no disaggregation: every instance prefills and decodes",
    "padg": "PaDG, partial disaggregation: instances take turns with prefills (rolling activation)",
    "fudg": "FuDG, full disaggregation: prefill and decode instances, the KV cache moves between",
}
"""What the three families are, by the kind of a strategy."""
ACCURACY: Final = {
    "measured": "calibrated on measured kernels of this GPU",
    "fitted": "constants fitted to published measurements of its kernels",
    "data-sheet": "from the data sheet with typical efficiencies: nothing was measured",
}


def candidate_in_words(name: str) -> str:
    """Return what the name of a candidate of `rank` stands for; empty for other names.

    >>> candidate_in_words("7e-tp2"), candidate_in_words("3p1d-tp4")
    ('7 instances of 2 GPUs that take turns with prefills', '3 prefill and 1 decode instances of \
4 GPUs')
    """
    match = re.match(r"(?:(\d+)([me])|(\d+)p(\d+)d)-tp(\d+)(?:-pp(\d+))?", name)
    if match is None:
        return ""
    count, kind, prefill, decode, tp_size, stages = match.groups()
    each = int(tp_size) * int(stages or 1)
    of = f"of {each} GPU{'s' * (each != 1)}"
    if kind is None:
        return f"{prefill} prefill and {decode} decode instances {of}"
    what = " that take turns with prefills" if kind == "e" else " that all prefill and decode"
    return f"{count} instance{'s' * (count != '1')} {of}{what}"


def family_of(scenario: Scenario, name: str) -> tuple[str, str]:
    """Return the short and the long name of a strategy's family; its kind where it has none."""
    for strategy in scenario.strategies:
        if strategy.name == name:
            match strategy:
                case NoDG():
                    return "NoDG", FAMILIES["nodg"]
                case PaDG():
                    return "PaDG", FAMILIES["padg"]
                case FuDG():
                    return "FuDG", FAMILIES["fudg"]
            return strategy.kind, ""
    return "", ""


def about(scenario: Scenario) -> list[tuple[str, str]]:
    """Return what is served on what, for whom: the lines above every table of the terminal."""
    first, *rest = heading(scenario).split("\n")
    pairs = [("Served", first)]
    for line in rest:
        label, colon, text = line.partition(":")
        if line.startswith(" ") or not colon:
            sign = " " if pairs[-1][0] == "Step times" else "\n"
            pairs[-1] = (pairs[-1][0], f"{pairs[-1][1]}{sign}{line.strip()}")
        elif label.startswith("Step times"):
            pairs.append(("Step times", f"{label.removeprefix('Step times of ')}: {text.strip()}"))
        else:
            pairs.append((label, text.strip()))
    return pairs


def price_caution(scenario: Scenario) -> list[str]:
    """Return what a comparison of costs must be read with; nothing without a price."""
    cluster = scenario.environment.cluster
    if cluster.price_per_gpu_hour is None:
        return []
    return [
        f"Costs are {cluster.price_per_gpu_hour:g} {cluster.currency} per GPU and hour times the "
        "GPUs held. Prices of other providers, years and regions differ by more than most "
        "strategies do: put in your own (cluster.price_per_gpu_hour)."
    ]


def trust(step_times: Mapping[str, Any]) -> list[str]:
    """Return how far the step times can be trusted, in sentences (`show.text.step_times_of`)."""
    name, accuracy = step_times["gpu"], step_times["accuracy"]
    if "source" in step_times:
        return [f"Step times come from {step_times['source']!r}; their accuracy is not known here."]
    lines = [f"Step times of {name}: {accuracy} ({ACCURACY.get(accuracy, 'see its source')})."]
    errors = step_times.get("errors")
    if not errors:
        lines.append(f"Errors of {step_times['kind']}: not measured, so not known.")
        return lines
    each = ", ".join(f"{name} {100 * error:.0f} %" for name, error in errors.items())
    fitted = "; the constants were fitted to these" if step_times.get("errors_fitted") else ""
    lines.append(
        f"Errors against measured runs of the same kind ({step_times['kind']}): {each}, on "
        f"{', '.join(step_times['errors_on'])}{fitted}."
    )
    return lines


def last_sections(
    scenario: Scenario, step_times: Mapping[str, Any], command: str, files: Sequence[str]
) -> list[Section]:
    """Return the ends of every report: accuracy, limits, scenario, command."""
    notes: list[Block] = [Bullets(trust(step_times))]
    if own := all_notes(scenario):
        notes += [Text("Assumed, replaced or ignored in this scenario:"), Bullets(own)]
    return [
        Section("How far to trust the step times", notes),
        Section("What is not modelled", [Bullets(NOT_MODELLED)]),
        Section(
            "Run it again",
            [
                Code(command),
                Text(f"{' and '.join(files)} stand in the result folder."),
                Code(to_toml(scenario.document), "The scenario with all defaults filled in"),
            ],
        ),
    ]


def command_line(*words: object) -> str:
    """Return a command as a shell takes it."""
    return " ".join(shlex.quote(str(word)) for word in ("simcluster", *words))


def scenario_of(folder: Path) -> Scenario:
    """Return the scenario of a result folder.

    Raises
    ------
    ConfigError, DataError
        If it is not there, or names what is no longer there.
    """
    from simcluster.scenario.file import parsed, resolve

    return resolve(parsed(folder / "scenario.toml"))


def short(key: str) -> str:
    """Return the name of a latency, of `config.TARGETS`, for the head of a column.

    >>> short("ttft"), short("e2el")
    ('TTFT', 'E2E')
    """
    return {"e2el": "E2E"}.get(key, key.upper())


def targets_in_words(scenario: Scenario) -> str:
    """Return the targets as a clause."""
    text = targets(scenario.environment.slo).replace("<=", "\N{LESS-THAN OR EQUAL TO}")
    return " and ".join(part.strip() for part in text.splitlines())


def within_targets(scenario: Scenario) -> str:
    """Return how many of the requests meet which targets, as a clause after "with"."""
    slo = scenario.environment.slo
    words = targets_in_words(scenario)
    if slo.percentiles is not None or slo.classes:
        return f"the targets met ({words})"
    return f"{100 * slo.attainment:g} % of the requests within {words.partition(' for ')[0]}"


def gpus(count: float) -> str:
    """Return a number of GPUs: whole where it is.

    >>> gpus(32.0), gpus(5.333)
    ('32', '5.33')
    """
    return f"{count:g}" if count == round(count) else three_digits(count)
