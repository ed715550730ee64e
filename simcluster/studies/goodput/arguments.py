"""What `find` is asked for: refused at once where it cannot be meant."""

from __future__ import annotations

from collections.abc import Sequence

from simcluster.scenario.arguments import between, whole
from simcluster.scenario.scenario import refuse_other


def refuse(
    scenario: object,
    *,
    seed: object,
    tolerance: object,
    replications: object,
    max_requests: object,
    indifference: object,
    levels: Sequence[object],
) -> None:
    """Refuse arguments of `find` that cannot be meant.

    Raises
    ------
    ConfigError
        If `scenario` is none or has no strategies, or a number is not in its range.
    """
    refuse_other(scenario)
    if seed is not None:
        whole("seed", seed, least=0, remedy="Give one such as 0.")
    between("tolerance", tolerance, above=0.0, below=1.0, remedy="Give a share such as 0.03.")
    for level in levels:
        between("levels", level, above=0.0, below=1.0, remedy="Give shares such as 0.99.")
    between("indifference", indifference, above=0.0, below=1.0, remedy="Give a share such as 0.03.")
    remedy = "Give 8: fewer say little of how much runs vary."
    whole("replications", replications, least=3, remedy=remedy)
    whole("max_requests", max_requests, least=1000, remedy="Give a run length such as 200000.")
