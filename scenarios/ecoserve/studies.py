"""The studies of EcoServe's evaluation, and of what it leaves open, as rows of tables.

``run.py`` finds their goodputs.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator
from typing import Any

from cases import MODELS, TTFT_S, Case
from inputs import inputs
from readings import READINGS
from rows import Row
from systems import PUBLISHED, SYSTEMS, ecoserve, sarathi

GPUS = ("L20", "A800")
CV = (1.0, 1.2, 1.5, 2.0)
SLOS = ((5.0, 0.1), (1.0, 0.05))
"""Targets (s) with published goodputs: those of the data set, and the strictest."""


def comparison() -> Iterator[Row]:
    """Five systems, three models, three data sets, two clusters."""
    for gpu, model, dataset in itertools.product(GPUS, MODELS, TTFT_S):
        case = Case(model=model, gpu=gpu, dataset=dataset)
        for name in PUBLISHED:
            label = {"gpu": gpu, "model": model, "dataset": dataset, "name": name}
            yield Row(label=label, case=case, tables=SYSTEMS[name](case), levels=(0.9,))


def slo_case(ttft_s: float, tpot_s: float) -> Case:
    """Return the case of other targets; the first is that of the comparison."""
    return Case() if (ttft_s, tpot_s) == SLOS[0] else Case(ttft_s=ttft_s, tpot_s=tpot_s)


def slo() -> Iterator[Row]:
    """CodeLlama-34B with ShareGPT on A800 under relaxed and strict targets."""
    for (ttft_s, tpot_s), name in itertools.product(SLOS, SYSTEMS):
        case = slo_case(ttft_s, tpot_s)
        yield Row(
            label={"ttft_s": ttft_s, "tpot_s": tpot_s, "name": name},
            case=case,
            tables=SYSTEMS[name](case),
            replications=5,
        )


def scaling() -> Iterator[Row]:
    """EcoServe and vLLM with 1 to 12 instances of CodeLlama-34B, TP 4 on L20."""
    for count, name in itertools.product((1, 2, 4, 6, 8, 12), ("EcoServe", "vLLM")):
        case = Case(gpu="L20", num_gpus=4 * count, changes={"cluster.nodes": max(8, count)})
        yield Row(label={"instances": count, "name": name}, case=case, tables=SYSTEMS[name](case))


def burstiness() -> Iterator[Row]:
    """Gamma arrivals of rising coefficient of variation."""
    for cv, name in itertools.product(CV, ("EcoServe", "vLLM", "Sarathi")):
        arrivals = {"workload.arrivals": {"kind": "gamma", "cv": cv}}
        case = Case(changes=arrivals if cv > 1 else {})
        yield Row(label={"cv": cv, "name": name}, case=case, tables=SYSTEMS[name](case))


def pipeline() -> Iterator[Row]:
    """Four GPUs of an instance as TP 4, or as TP 2 in two stages: what PaDG makes of pipelines."""
    for gpu, (tp, pp), name in itertools.product(
        GPUS, ((4, 1), (2, 2)), ("EcoServe", "vLLM", "Sarathi")
    ):
        case = Case(gpu=gpu)
        layout = {"tp_size": tp, "pp_size": pp, "instances": {"L20": 8, "A800": 4}[gpu]}
        tables = [{**table, **layout} for table in SYSTEMS[name](case)]
        yield Row(
            label={"gpu": gpu, "layout": f"TP{tp} PP{pp}", "name": name}, case=case, tables=tables
        )


def ablations() -> Iterator[Row]:
    """Which instance is next, and when the window passes on (EcoServe's two ablations)."""
    forms: dict[str, dict[str, Any]] = {
        "cyclic, adaptive": {},
        "random": {"next_instance": "random"},
        "fixed 1/4": {"window": "fixed:0.25"},
        "fixed 1/2": {"window": "fixed:0.5"},
        "fixed 3/4": {"window": "fixed:0.75"},
        "fixed 1": {"window": "fixed:1"},
    }
    for model, name in itertools.product(MODELS, forms):
        case = Case(model=model)
        yield Row(
            label={"model": model, "name": name},
            case=case,
            tables=ecoserve(case, **forms[name]),
        )


def slack() -> Iterator[Row]:
    """What the statistic of the slack and hold-back contribute: goodput by both metrics."""
    case = Case()
    for variant, statistic, (hold, metric) in itertools.product(
        ("paper", "code"),
        ("mean", "max", "min"),
        # The paper's metric does not see what users get, so it cannot tell whether it was held.
        ((True, "ecoserve"), (True, "user"), (False, "user")),
    ):
        own = "max" if variant == "code" else "mean"
        settings = {} if statistic == own else {"slack": statistic}
        settings |= {} if hold else {"hold_output": False}
        label = {"variant": variant, "slack": statistic, "hold_output": hold, "metric": metric}
        system = {"paper": "EcoServe (paper)", "code": "EcoServe"}[variant]
        tables = SYSTEMS[system](case, **settings)
        yield Row(label=label, case=case, tables=tables, metric=metric)
    for name, metric in itertools.product(("vLLM", "Sarathi"), ("ecoserve", "user")):
        label = {"variant": name, "slack": "", "hold_output": False, "metric": metric}
        yield Row(label=label, case=case, tables=SYSTEMS[name](case), metric=metric)


def readings() -> Iterator[Row]:
    """What the published goodputs would be if the paper's TPOT meant something else."""
    for targets, metric in itertools.product((SLOS[0], SLOS[-1]), ("ecoserve", "user", *READINGS)):
        case = slo_case(*targets)
        alone = dataclasses.replace(case, num_gpus=case.tp_size)
        systems = {
            **{name: (case, SYSTEMS[name](case)) for name in ("EcoServe", "EcoServe (paper)")},
            "vLLM": (case, SYSTEMS["vLLM"](case)),
            # A router that draws the instance splits Poisson arrivals: each is on its own.
            "vLLM, random instance": (alone, SYSTEMS["vLLM"](alone)),
            "Sarathi": (case, SYSTEMS["Sarathi"](case)),
            "Sarathi 256": (case, sarathi(case, (256,))),
        }
        for name, (own, tables) in systems.items():
            yield Row(
                label={"ttft_s": targets[0], "tpot_s": targets[1], "name": name, "reading": metric},
                case=own,
                tables=tables,
                metric=metric,
                scale=case.num_instances // own.num_instances,
            )


STUDIES: dict[str, Callable[[], Iterator[Row]]] = {
    "slo": slo,
    "readings": readings,
    "comparison": comparison,
    "ablations": ablations,
    "inputs": inputs,
    "slack": slack,
    "scaling": scaling,
    "burstiness": burstiness,
    "pipeline": pipeline,
}
