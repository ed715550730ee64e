"""What a ranking is: candidates with their goodputs and reasons, and the fronts among them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Literal

from simcluster.runs.views import Viewed
from simcluster.scenario.rank_table import RankTable
from simcluster.scenario.scenario import Scenario
from simcluster.studies.goodput import Compared, Verdict
from simcluster.studies.goodput.pairs import compare_all
from simcluster.studies.rank.explain import Bottleneck

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Stage = Literal["bound", "screen", "race", "final"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A ranked candidate."""

    name: str
    """As BestServe writes it (`space`), or that of a strategy of the file."""
    strategy: str
    """Family: ``"NoDG"``, ``"NoDG chunked"``, ``"PaDG"``, ``"FuDG intra-node"``, ..."""
    num_gpus: int
    """GPUs it takes; where instances come and go, those of the most in service."""
    mean_gpus: float
    """GPUs that it holds about its goodput, mean over time."""
    goodput_rps: float
    low_rps: float
    high_rps: float
    """Goodput and its 95 % interval (requests/s)."""
    stage: Stage
    """How far it came: ``"bound"`` (the roofline alone says that it cannot win; its goodput is what
    others of its family make of theirs), ``"screen"`` (one draw of few requests), ``"race"``
    (several draws) or ``"final"`` (settled in the longest runs)."""
    price_per_gpu_hour: float | None
    """Price of one GPU; None where no price is known."""
    bottleneck: Bottleneck
    """What keeps it from sustaining more."""
    why: str
    """The same in words, with figures."""
    ttft_s: float
    tpot_s: float
    """Latencies that the wanted share of requests gets at the ranking's `latency_rate_rps` (s); NaN
    if it does not sustain that rate."""
    bound_rps: float
    """What its parts sustain at most by the roofline (requests/s)."""

    @property
    def per_gpu_rps(self) -> float:
        """Goodput per GPU held (requests/s)."""
        return self.goodput_rps / self.mean_gpus

    @property
    def cost_per_hour(self) -> float | None:
        """Price of the GPUs held; None where no price is known."""
        return None if self.price_per_gpu_hour is None else self.price_per_gpu_hour * self.mean_gpus

    def holding(self, mean_gpus: float) -> Candidate:
        """Return the candidate with another count of the GPUs held, if it is known."""
        return replace(self, mean_gpus=mean_gpus) if mean_gpus > 0 else self

    @property
    def per_cost(self) -> float:
        """Requests per unit of currency; NaN where no price is known."""
        if self.cost_per_hour is None:
            return math.nan
        return self.goodput_rps * 3600.0 / self.cost_per_hour


@dataclass(frozen=True, slots=True, kw_only=True)
class Latencies:
    """Latencies of a run."""

    rate_rps: float
    """Offered rate (requests/s)."""
    percentiles: Mapping[str, Mapping[str, float]]
    """By latency (``"ttft"``, ``"tpot"``, ``"e2el"``) and percentile (``"p50"``,
    ``"p95"``, ``"p99"``, and ``"wanted"`` for the one that its target is for): s; NaN of none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Level:
    """Latencies of a candidate at a share of its goodput."""

    name: str
    share: float
    """Offered rate over the goodput."""
    latencies: Latencies
    """There, of the finished requests."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A candidate with its spare instances, for a rate that must be sustained."""

    candidate: Candidate
    """Without its spares: what it sustains while these stand in for lost instances."""
    num_spares: int
    """Instances that are paid for and idle."""
    num_gpus: int
    """GPUs that are paid for, those of the spares included."""
    cost_per_hour: float | None
    """Price of all of them; None where no price is known."""
    cost_per_million: float | None
    """Cost per million output tokens when the needed rate is offered: None where no price is
    known, or the rate is missed."""
    gpu_hours_per_million: float | None
    """GPU-hours per million output tokens at that rate; None where it is missed."""
    sustains: Literal["yes", "not sure", "no"]
    """Whether the whole interval of its goodput lies above what is needed with headroom; "not sure"
    if a part of it does, or its goodput is not settled."""
    margin: float
    """Goodput over what is needed with headroom, less 1."""
    margins: tuple[float, float]
    """The same of both ends of the interval."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """The cheapest plans that sustain a rate."""

    need_rps: float
    """The rate (requests/s)."""
    rate_rps: float
    """What the goodput must reach: with headroom (requests/s)."""
    headroom: float
    """Share of the goodput that stays free."""
    spares: str
    """What is held against lost instances, in words."""
    plans: tuple[Plan, ...]
    """The cheapest, all of one cost: those that sustain it, then those that may; each by goodput,
    falling."""
    below: Plan | None
    """The next step down in cost: the best plan of the next lower cost, which misses the rate."""
    above: Plan | None
    """The next step up in cost: the best plan of the next higher cost."""


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Ranking(Viewed):
    """All candidates, the best first.

    A notebook shows them as a table; `to_frame`, `report`, `plot_cost_front` and
    `plot_latency_front` show them otherwise.
    """

    _VIEW: ClassVar[str] = "simcluster.studies.rank.views"

    scenario: Scenario
    """What was ranked; its strategies are the candidates."""
    asked: Scenario | None = None
    """The scenario as it was given, with the strategies of the file alone."""
    table: RankTable
    """The space."""
    candidates: tuple[Candidate, ...]
    """By goodput, falling."""
    removed: Counter[str]
    """Number of candidates that rules removed before any run."""
    unsettled: dict[str, str]
    """What the finals say of each finalist that they did not settle, in words; the goodput of such
    a candidate is that of the last round."""
    verdicts: dict[str, Verdict]
    """How the searches of the finalists ended."""
    notes: tuple[str, ...]
    """What else a reader must know of single candidates."""
    raced: tuple[str, ...] = ()
    """Unsettled finalists and the winner, in words, by the short runs that their goodputs rest
    on."""
    levels: tuple[Level, ...] = ()
    """Latencies of the best candidates below their goodputs."""
    need: Need | None = None
    """With `table.need_rps`: the cheapest plans. The candidates then are those of the plans."""
    latency_rate_rps: float
    """Offered rate at which latencies are compared (requests/s)."""
    num_requests: int
    """Requests simulated in all."""

    def __repr__(self) -> str:
        return f"Ranking({len(self.candidates)} candidates, {self.candidates[0].name} first)"

    def plot_cost_front(self, ax: Axes | None = None) -> Axes:
        """Draw goodput by cost, with intervals and the Pareto front, into new axes or `ax`."""
        return self._draw("plot_cost_front", ax)

    def plot_latency_front(self, ax: Axes | None = None) -> Axes:
        """Draw TTFT by TPOT, with the Pareto front."""
        return self._draw("plot_latency_front", ax)

    @property
    def decided(self) -> tuple[str, ...]:
        """Pairs of finalists that differ significantly, in words."""
        return tuple(str(pair) for pair in self._pairs() if pair.decided)

    @property
    def undecided(self) -> tuple[str, ...]:
        """Pairs of finalists that do not."""
        return tuple(str(pair) for pair in self._pairs() if not pair.decided)

    def _pairs(self) -> list[Compared]:
        """Return the pairs of finalists; with a need of the plans of one cost alone."""
        if self.need is None:
            return compare_all(self.verdicts)
        names = {plan.candidate.name for plan in self.need.plans}
        own = {name: v for name, v in self.verdicts.items() if name in names}
        return compare_all(own)

    def cost_front(self) -> tuple[Candidate, ...]:
        """Candidates that no other beats in goodput at no more cost, the cheapest first.

        Cost is that of the GPUs held per hour, and so their number.
        """
        return _front(self.candidates, lambda c: (c.mean_gpus, -c.goodput_rps))

    def latency_front(self) -> tuple[Candidate, ...]:
        """Candidates that no other beats in both TTFT and TPOT, the lowest TTFT first."""
        known = [c for c in self.candidates if not math.isnan(c.ttft_s + c.tpot_s)]
        return _front(known, lambda c: (c.ttft_s, c.tpot_s))


def _front(
    candidates: Iterable[Candidate], key: Callable[[Candidate], tuple[float, float]]
) -> tuple[Candidate, ...]:
    """Return those that lie on the front where both parts of `key` are as low as they can be."""
    front: list[Candidate] = []
    for candidate in sorted(candidates, key=key):
        if not front or key(candidate)[1] < key(front[-1])[1]:
            front.append(candidate)
    return tuple(front)
