"""The command ``simcluster plan``: thin."""

from __future__ import annotations

import json
from pathlib import Path

import click

from simcluster.report.common import candidate_in_words, within_targets
from simcluster.report.of_rank import need_answer
from simcluster.runs import recorded
from simcluster.scenario.draft import SPREAD, Draft
from simcluster.show.terminal import filled
from simcluster.show.text import resumable
from simcluster.studies import plan as plans
from simcluster.studies.rank import report
from simcluster.studies.rank.ranking import Ranking


def run(
    draft: Draft,
    *,
    sized: bool,
    jobs: int | None,
    progress: plans.Progress | None,
    out: Path | None,
    as_json: bool,
) -> None:
    """Plan, write, print.

    Parameters
    ----------
    sized : bool
        Choose the number of GPUs; else those of the draft are all there are.
    """
    with resumable(out is not None), recorded.writing(out, report.FILES) as (folder, runs):
        if sized:
            draft, ranking = plans.sized_plan(draft, jobs=jobs, progress=progress, recorded=runs)
        else:
            ranking = plans.plan(draft, jobs=jobs, progress=progress, recorded=runs)
        if folder is not None:
            report.write(ranking, folder, plans.scenario_of(draft))
    if as_json:
        click.echo(json.dumps(report.as_json(ranking), indent=2))
        return
    click.echo(answer(draft, ranking))
    click.echo(report.as_text(ranking), nl=False)


def answer(draft: Draft, ranking: Ranking) -> str:
    """Return the answer in sentences, and what was assumed."""
    assert ranking.need is not None, "a plan is for a rate"
    plain = report.as_json(ranking)
    share = within_targets(ranking.scenario)
    lines = [" ".join(need_answer(plain["need"], plain["currency"], share, plain["notes"]))]
    lines += [
        f"{p.candidate.name}: {words}."
        for p in ranking.need.plans[:3]
        if p.sustains == ranking.need.plans[0].sustains
        and (words := candidate_in_words(p.candidate.name))
    ]
    assumed = ["Poisson arrivals"]
    if draft.spread:
        said = "assumed" if draft.spread == SPREAD else "as given"
        assumed.append(
            f"lengths lognormal around their medians with spread {draft.spread:g} ({said})"
        )
    assumed.append(f"engine {ranking.scenario.environment.engine.name}")
    if not draft.allows_padg:
        lines.append("PaDG was not tried: its instances take turns by both targets, TTFT and TPOT.")
    lines.append(f"Assumed: {', '.join(assumed)}. Change them: `simcluster init`, same options.")
    return "\n".join(filled(line, "") for line in lines) + "\n"
