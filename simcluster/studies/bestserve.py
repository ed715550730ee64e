"""A BestServe-class estimator: goodput by heuristics, without stepping from token to token.

BestServe (Hu et al., arXiv 2506.05871) estimates the goodput of collocated and disaggregated
strategies in three layers: an estimator of batch times (adapted roofline and CPU-GPU dispatch), a
simulator of requests, an optimiser that bisects the rate. Of the paper its abstract and the opening
of its introduction could be read; what is here is a reconstruction from them and from first
principles, so that its error against the simulation by steps can be measured. Where the paper's
constants are not known, those of the catalogue stand in.

Not in it: chunks, turns (PaDG), pipelines, KV blocks that run out, preemption, contended links,
host work besides the issue of kernels, experts.
"""

from __future__ import annotations

import functools
import heapq
import math
from collections import Counter, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Final, NamedTuple, Protocol

import numpy as np

from simcluster.config import Environment
from simcluster.errors import ConfigError
from simcluster.roofline.base import StepShape
from simcluster.roofline.collectives import all_reduce_s
from simcluster.roofline.dispatch import TickRun, eager_lines, graph_line
from simcluster.roofline.of_environment import group_fabric
from simcluster.roofline.sources import source_of
from simcluster.scenario.scenario import Scenario
from simcluster.strategies import FuDG, NoDG, Strategy
from simcluster.strategies.base import CommonSettings
from simcluster.studies.space import build
from simcluster.units import TICK_S, TICKS_PER_S, FloatArray
from simcluster.workload import Workload
from simcluster.workload import build as build_workload

NUM_REQUESTS: Final = 2000
"""Requests of a run of the heuristic simulator."""
_TOLERANCE: Final = 0.005
_FARTHEST: Final = 2.0**20


class BatchTimes(Protocol):
    """Layer 1: times of batches."""

    def prefill_s(self, batch: int, prompt_len: int) -> float:
        """Time to prefill `batch` prompts of `prompt_len` tokens (s)."""

    def decode_s(self, batch: int, context: int) -> float:
        """Time of a decode step of `batch` sequences that attend to `context` tokens each (s)."""


class Estimator:
    """Batch times by BestServe's adapted roofline with dispatch: a `BatchTimes`.

    Every operator takes the larger of its computing and its memory time, at constant efficiencies:
    compute and memory those of GEMMs in the catalogue for all operators, communication those of
    the fabric's all-reduce. One CPU thread issues operator after operator; the GPU runs them in
    order, none before its issue.

    Parameters
    ----------
    environment : Environment
        Model (dense, with grouped or plain multi-head attention), GPU, fabric, engine.
    tp_size : int
        Ranks of the tensor-parallel group.

    Raises
    ------
    ConfigError
        If the model has experts, latent attention, windows, or layers of several kinds.
    """

    def __init__(self, environment: Environment, tp_size: int) -> None:
        spec, gpu = environment.model.spec, environment.cluster.gpu
        if not spec.is_plain:
            raise ConfigError(
                "model.name",
                spec.name,
                "BestServe's estimator is about dense models of equal layers that attend to all",
                'Use rank.mode = "simulate".',
            )
        constants = gpu.constants_of(environment.engine.kernel_generation)
        self._spec, self._tp_size = spec, tp_size
        self._flops = constants.mfu_gemm * gpu.flops_16bit
        self._bandwidth = constants.mbu_gemm * gpu.memory_bandwidth
        self._fabric = group_fabric(environment.cluster, tp_size)
        stored = spec.layers[0].layer.dtypes.mixer
        self._bytes = environment.model.dtype_of(stored).num_bytes
        self._kv_bytes = environment.model.kv_bytes
        self._engine = environment.engine

    def prefill_s(self, batch: int, prompt_len: int) -> float:
        """Time to prefill `batch` prompts of `prompt_len` tokens (s)."""
        return self._step_s(batch, prompt_len, prompt_len, captured=False)

    def decode_s(self, batch: int, context: int) -> float:
        """Time of a decode step of `batch` sequences that attend to `context` tokens each (s)."""
        return self._step_s(batch, 1, context, captured=batch <= self._engine.graph_max_seqs)

    def issue_s(self) -> float:
        """Time the CPU takes to issue all operators of a step one by one (s)."""
        per_layer = len(self._layer(1, 1, 1))
        return self._engine.issue_s * (per_layer * self._spec.num_layers + 3)

    def _step_s(self, batch: int, new: int, context: int, *, captured: bool) -> float:
        layer = TickRun(_ticks(self._layer(batch, new, context)), -1, 0, self._spec.num_layers)
        head = TickRun(_ticks(self._head(batch)), -1, 0, 1)
        embedding = TickRun(_ticks([self._embedding(batch * new)]), -1, 0, 1)
        runs = (embedding, layer, head)
        if captured:
            return graph_line(runs, self._engine.graph_issue_s * TICKS_PER_S).const * TICK_S
        lines = eager_lines(runs, float(round(self._engine.issue_s * TICKS_PER_S)))
        return max(line.const for line in lines) * TICK_S

    def _roof_s(self, flops: float, moved: float) -> float:
        return max(flops / self._flops, moved / self._bandwidth)

    def _layer(self, batch: int, new: int, context: int) -> list[float]:
        """Times of the operators of a layer (s): `new` tokens of each sequence over `context`."""
        spec, t, p = self._spec, self._tp_size, 2.0
        tokens = float(batch * new)
        h, f = spec.hidden_size, spec.ffn_dim / t
        q = spec.num_heads * spec.head_dim / t
        kv = max(spec.num_kv_heads / t, 1.0) * spec.head_dim
        pairs = tokens * (context / 2 if new > 1 else context)  # causal: half of them
        attended = batch * context

        def gemm(inner: float, outer: float) -> float:
            moved = self._bytes * inner * outer + p * tokens * (inner + outer)
            return self._roof_s(2 * tokens * inner * outer, moved)

        norm = self._roof_s(4 * tokens * h, p * (2 * tokens * h + h))
        return [
            norm,
            gemm(h, q),
            gemm(h, 2 * kv),
            self._roof_s(6 * tokens * (q + kv), 2 * p * tokens * (q + kv)),  # rotary embedding
            self._roof_s(0.0, 2 * self._kv_bytes * tokens * kv),  # KV written
            self._roof_s(
                4 * pairs * q, p * 2 * tokens * q + self._kv_bytes * 2 * attended * kv
            ),  # attention
            gemm(q, h),
            *self._all_reduce(tokens),
            norm,
            gemm(h, 2 * f),
            self._roof_s(5 * tokens * f, 3 * p * tokens * f),  # activation
            gemm(f, h),
            *self._all_reduce(tokens),
        ]

    def _all_reduce(self, tokens: float) -> list[float]:
        if self._tp_size == 1:
            return []
        return [all_reduce_s(self._fabric, self._tp_size, 2.0 * tokens * self._spec.hidden_size)]

    def _embedding(self, tokens: float) -> float:
        return self._roof_s(0.0, 2 * 2.0 * tokens * self._spec.hidden_size)

    def _head(self, batch: int) -> list[float]:
        """Final norm and LM head, for the last token of each sequence (s)."""
        h, outer = self._spec.hidden_size, self._spec.vocab_size / self._tp_size
        norm = self._roof_s(4.0 * batch * h, 2.0 * (2 * batch * h + h))
        moved = self._bytes * h * outer + 2.0 * batch * (h + outer)
        return [norm, self._roof_s(2.0 * batch * h * outer, moved)]


def _ticks(times_s: Iterable[float]) -> tuple[float, ...]:
    return tuple(float(round(t * TICKS_PER_S)) for t in times_s)


class StepTimes:
    """Batch times by simcluster's own step times: shows what the heuristics alone get wrong."""

    def __init__(self, environment: Environment, tp_size: int) -> None:
        self.times = source_of(environment)(environment, tp_size)

    def prefill_s(self, batch: int, prompt_len: int) -> float:
        """Time to prefill `batch` prompts of `prompt_len` tokens (s)."""
        return self.times.step_s(StepShape(0, 0, ((prompt_len, 0),) * batch, batch, 0))

    def decode_s(self, batch: int, context: int) -> float:
        """Time of a decode step of `batch` sequences that attend to `context` tokens each (s)."""
        tokens = batch * context
        return self.times.step_s(StepShape(batch, tokens, (), batch, tokens))


class _Remembered:
    """Batch times that are computed once each."""

    def __init__(self, times: BatchTimes) -> None:
        self.prefill_s = functools.cache(times.prefill_s)
        self.decode_s = functools.cache(times.decode_s)


# Layer 2: requests -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class TandemDeployment:
    """A strategy as the heuristic simulator knows it."""

    mixed: int
    prefill: int
    decode: int
    """Instances of each role."""
    slots: int
    """Sequences that decode at once in an instance."""
    prefill_tokens: int
    """Tokens of a prefill batch."""
    transfer_s_per_token: float
    """Time to move the KV cache of one token to the decode instance (s), alone on the link."""


class Latencies(NamedTuple):
    """TTFT and TPOT of every request (s), NaN for the TPOT of one token; shape ``(n,)``."""

    ttft_s: FloatArray
    tpot_s: FloatArray


class _Slots:
    """The decode slots of one instance, with the pseudo batch size.

    A request's whole decoding is timed when it gets its slot, from a pseudo batch size: the mean of
    the busy slots now and of the pseudo batch size before. So it follows the occupancy damped, for
    the request will also meet the occupancies to come.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._ends: list[tuple[float, int]] = []
        self._delay = 0.0
        self._pseudo = 0.0
        self.left: dict[int, float] = {}

    def free_at(self, now: float) -> float:
        """When a slot is free (s): now, or when the first one gets free."""
        self.release(now)
        if len(self._ends) < self._count:
            return now
        return self._ends[0][0] + self._delay

    def num_busy(self, now: float) -> int:
        """Busy slots."""
        self.release(now)
        return len(self._ends)

    def release(self, now: float) -> None:
        """Let go of those that have ended."""
        while self._ends and self._ends[0][0] + self._delay <= now:
            end, request = heapq.heappop(self._ends)
            self.left[request] = end + self._delay

    def delay(self, by_s: float) -> None:
        """Hold up all that decode now."""
        self._delay += by_s

    def admit(self, now: float, request: int, duration_s: Callable[[int], float]) -> None:
        """Give `request` a slot; `duration_s` tells its decoding time by pseudo batch size."""
        busy = len(self._ends) + 1
        self._pseudo = (self._pseudo + busy) / 2 if self._pseudo else float(busy)
        end = now + duration_s(max(1, round(self._pseudo)))
        heapq.heappush(self._ends, (end - self._delay, request))


def estimate(deployment: TandemDeployment, times: BatchTimes, workload: Workload) -> Latencies:
    """Estimate the latencies of requests by batches and pseudo batches.

    Notes
    -----
    Disaggregated: a tandem queue. Prefill instances take waiting requests in order, as many as
    their token limit allows, and the decode instance with the fewest busy slots takes over after
    the transfer. Collocated: requests are dealt out in turn, and an instance prefills whenever
    requests wait and slots are free, which holds up all that decode there.
    """
    if deployment.mixed:
        first_s, last_s = _collocated(deployment, times, workload)
    else:
        first_s = _prefilled(deployment, times, workload)
        last_s = _decoded(deployment, times, workload, first_s)
    gaps = workload.output_len - 1.0
    tpot = np.full(len(first_s), np.nan)
    np.divide(last_s - first_s, gaps, out=tpot, where=gaps > 0)
    return Latencies(first_s - workload.arrival_s, tpot)


def _decoding(times: BatchTimes, prompt: int, output: int) -> Callable[[int], float]:
    """Return the decoding time of a request by batch size: its steps, each as its middle one."""
    context = prompt + output // 2
    return lambda batch: (output - 1) * times.decode_s(batch, context)


def _batch(
    deployment: TandemDeployment, waiting: deque[int], prompts: list[int], most: int
) -> list[int]:
    """Take the next prefill batch from `waiting`: at least one request, at most `most`."""
    batch: list[int] = []
    tokens = 0
    while waiting and len(batch) < most:
        tokens += prompts[waiting[0]]
        if batch and tokens > deployment.prefill_tokens:
            break
        batch.append(waiting.popleft())
    return batch


def _prefill_s(times: BatchTimes, batch: list[int], prompts: list[int]) -> float:
    mean = round(sum(prompts[i] for i in batch) / len(batch))
    return times.prefill_s(len(batch), max(1, mean))


def _prefilled(deployment: TandemDeployment, times: BatchTimes, workload: Workload) -> FloatArray:
    arrivals, prompts = workload.arrival_s.tolist(), workload.prompt_len.tolist()
    free = [0.0] * deployment.prefill
    first_s = np.empty(len(arrivals))
    waiting: deque[int] = deque()
    coming = 0
    while coming < len(arrivals) or waiting:
        now = heapq.heappop(free)
        if not waiting:
            now = max(now, arrivals[coming])
        while coming < len(arrivals) and arrivals[coming] <= now:
            waiting.append(coming)
            coming += 1
        batch = _batch(deployment, waiting, prompts, len(waiting))
        end = now + _prefill_s(times, batch, prompts)
        first_s[batch] = end
        heapq.heappush(free, end)
    return first_s


def _decoded(
    deployment: TandemDeployment, times: BatchTimes, workload: Workload, first_s: FloatArray
) -> FloatArray:
    prompts, outputs = workload.prompt_len.tolist(), workload.output_len.tolist()
    ready_s = first_s + deployment.transfer_s_per_token * workload.prompt_len
    instances = [_Slots(deployment.slots) for _ in range(deployment.decode)]
    now = 0.0
    for request in np.argsort(ready_s, kind="stable").tolist():
        now = max(now, float(ready_s[request]))  # in order: nobody overtakes one that waits
        slots = min(instances, key=lambda own: own.num_busy(now))
        now = slots.free_at(now)
        slots.release(now)
        slots.admit(now, request, _decoding(times, prompts[request], outputs[request]))
    return _left(instances, first_s)


def _collocated(
    deployment: TandemDeployment, times: BatchTimes, workload: Workload
) -> tuple[FloatArray, FloatArray]:
    arrivals, prompts = workload.arrival_s.tolist(), workload.prompt_len.tolist()
    outputs = workload.output_len.tolist()
    first_s = np.empty(len(arrivals))
    instances = []
    for number in range(deployment.mixed):
        slots = _Slots(deployment.slots)
        instances.append(slots)
        own = deque(range(number, len(arrivals), deployment.mixed))
        waiting: deque[int] = deque()
        now = 0.0
        while own or waiting:
            if not waiting:
                now = max(now, arrivals[own[0]])
            now = slots.free_at(now)
            slots.release(now)
            while own and arrivals[own[0]] <= now:
                waiting.append(own.popleft())
            room = deployment.slots - slots.num_busy(now)
            batch = _batch(deployment, waiting, prompts, room)
            took = _prefill_s(times, batch, prompts)
            slots.delay(took)
            now += took
            first_s[batch] = now
            for request in batch:
                slots.admit(now, request, _decoding(times, prompts[request], outputs[request]))
    return first_s, _left(instances, first_s)


def _left(instances: list[_Slots], first_s: FloatArray) -> FloatArray:
    """When each request leaves (s)."""
    last_s = first_s.copy()
    for slots in instances:
        slots.release(math.inf)
        for request, end in slots.left.items():
            last_s[request] = end
    return last_s


# Layer 3: goodput --------------------------------------------------------------------------------


def knows(strategy: Strategy) -> bool:
    """Tell whether BestServe knows a strategy.

    Those are collocated with prefill first, or disaggregated, on the same GPUs at all times and
    without pipelines, expert and data parallelism.
    """
    if isinstance(strategy, CommonSettings) and strategy.dp_size * strategy.ep_size > 1:
        return False
    match strategy:
        case NoDG(scheduler="prefill-priority", pp_size=1, autoscale=None):
            return True
        case FuDG(
            pp_size=1,
            prefill_autoscale=None,
            decode_autoscale=None,
            prefill_tp_size=None,
            prefill_dp_size=None,
            prefill_ep_size=None,
        ):
            return True
    return False


def deployment(environment: Environment, strategy: Strategy) -> TandemDeployment:
    """Return `strategy` as the heuristic simulator knows it.

    Raises
    ------
    ConfigError
        If BestServe does not know such a strategy, or it does not fit.
    """
    if not knows(strategy):
        rule = (
            "BestServe knows collocated instances that prefill first and disaggregated pools, "
            "without pipelines, expert and data parallelism or autoscaling"
        )
        key, remedy = f"strategy.{strategy.name}.kind", 'Use rank.mode = "simulate".'
        raise ConfigError(key, strategy.kind, rule, remedy)
    cluster = build(environment, strategy)
    engine, config = environment.engine, environment.cluster
    gpus = cluster.placed[0].num_gpus
    count = Counter(placed.role for placed in cluster.placed)
    per_token_s = 0.0
    if isinstance(strategy, FuDG):
        if strategy.placement == "intra-node" or config.network is None:
            bandwidth = gpus * config.fabric.bandwidth * config.fabric.efficiency
        else:
            network = config.network.bandwidth * config.network.efficiency
            bandwidth = config.num_nics * network
        per_token_s = environment.model.kv_bytes_per_token / bandwidth
    return TandemDeployment(
        mixed=count["mixed"],
        prefill=count["prefill"],
        decode=count["decode"],
        slots=getattr(strategy, "max_num_seqs", None) or engine.max_num_seqs,
        prefill_tokens=getattr(strategy, "max_num_batched_tokens", None)
        or engine.max_num_batched_tokens
        or max(environment.model.max_model_len, 2048),
        transfer_s_per_token=per_token_s,
    )


def goodput_rps(
    scenario: Scenario,
    strategy: Strategy,
    *,
    times: type[Estimator] | type[StepTimes] = Estimator,
    num_requests: int = NUM_REQUESTS,
    relaxation: float = 0.0,
) -> float:
    """Estimate the goodput of `strategy` as BestServe does: bisect the rate.

    Parameters
    ----------
    scenario : Scenario
        Machines, engine, workload, targets; the first of its seeds draws the requests.
    strategy : Strategy
        Collocated (prefill first) or disaggregated, without pipelines.
    times : type
        `Estimator`, or `StepTimes` to see the error of the heuristics alone.
    num_requests : int
        Requests of a run.
    relaxation : float
        Share by which the latencies may exceed their targets (BestServe's tolerance of noise).

    Returns
    -------
    float
        Highest rate (requests/s) at which the wanted quantile of the TTFT and that of the TPOT,
        each by itself (marginal), are within the targets; 0 if none is.

    Raises
    ------
    ConfigError
        If BestServe does not know such a strategy or model, or targets have percentiles.
    """
    environment, slo = scenario.environment, scenario.environment.slo
    if slo.percentiles is not None:
        rule = "BestServe takes one share for all targets"
        remedy = 'Use slo.attainment alone, or rank.mode = "simulate".'
        raise ConfigError("slo.percentiles", None, rule, remedy)
    served = deployment(environment, strategy)
    batches = _Remembered(times(environment, getattr(strategy, "tp_size", 1)))
    settings = replace(scenario.workload, num_requests=num_requests, duration_s=None)

    def within(latencies_s: FloatArray, target_s: float | None) -> bool:
        known = latencies_s[~np.isnan(latencies_s)]
        if target_s is None or not known.size:
            return True
        return float(np.quantile(known, slo.attainment)) <= (1 + relaxation) * target_s

    def feasible(rate_rps: float) -> bool:
        workload = build_workload(
            settings,
            seed=scenario.run.seeds[0],
            rate_rps=rate_rps,
            max_model_len=environment.model.max_model_len,
        )
        ttft_s, tpot_s = estimate(served, batches, workload)
        return within(ttft_s, slo.ttft_s) and within(tpot_s, slo.tpot_s)

    low, high = 0.0, 1.0
    while feasible(high) and high < _FARTHEST:
        low, high = high, 2 * high
    while high - low > _TOLERANCE * high and high > 1e-3:
        middle = (low + high) / 2
        low, high = (middle, high) if feasible(middle) else (low, middle)
    return low
