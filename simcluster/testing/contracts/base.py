"""Shared by the contracts: cases that hypothesis draws, runs compared, parts registered."""

from __future__ import annotations

import dataclasses
import hashlib
import random
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import numpy as np
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from simcluster.config import Environment
from simcluster.registry import Registry
from simcluster.request import Request
from simcluster.roofline.sources import StepTimeFactory
from simcluster.runs.result import Result
from simcluster.runs.simulate import run
from simcluster.strategies.base import Strategy
from simcluster.testing.examples import THOROUGH
from simcluster.testing.laws import check_laws, require
from simcluster.testing.toy import assert_same, toy_workload
from simcluster.testing.watch import Watched
from simcluster.workload import Workload

T = TypeVar("T")
Asked = list[tuple[float, int, int]]
"""Gap before each request (s), prompt and output (tokens)."""

GAPS: st.SearchStrategy[float] = st.one_of(
    st.just(0.0),
    # Multiples of a coarse tick: ties with each other.
    st.integers(0, 40).map(lambda k: k * 2.0**-10),
    st.floats(0.0, 0.03),
)
"""Times between two arrivals (s) in which the toy cluster does a few steps."""
REQUESTS: st.SearchStrategy[Asked] = st.lists(
    st.tuples(GAPS, st.integers(1, 100), st.integers(1, 60)), min_size=1, max_size=20
)
"""Requests for the toy cluster."""
PREFIXES: st.SearchStrategy[list[tuple[int, int]] | None] = st.one_of(
    st.none(), st.lists(st.tuples(st.integers(0, 3), st.integers(0, 160)), min_size=1, max_size=6)
)
"""Groups of requests that begin alike, and how many tokens they share."""
KERNEL_TOKENS = 60
"""Runs with no more output tokens than this are also made kernel by kernel."""


def laws(max_examples: int) -> settings:
    """Return the settings of a contract's test: the same examples on every machine, every day.

    A thorough run (``SIMCLUSTER_THOROUGH=1``) draws ten times as many, and others each time.

    The fixture of a contract is a class or plain settings, so it may serve all examples. A test is
    meant to be inherited by many classes, and its result does not depend on a slow machine.
    """
    return settings(
        max_examples=10 * max_examples if THOROUGH else max_examples,
        deadline=None,
        derandomize=not THOROUGH,
        report_multiple_bugs=False,
        suppress_health_check=[
            HealthCheck.function_scoped_fixture,
            HealthCheck.differing_executors,
            HealthCheck.too_slow,
        ],
    )


@contextmanager
def registered(registry: Registry[T], implementation: T, name: str = "under-test") -> Iterator[str]:
    """Give the name of `implementation` in `registry`; add it as `name` for the block if new."""
    for known in registry:
        if registry[known] is implementation:
            yield known
            return
    before = registry.get(name)
    registry[name] = implementation
    try:
        yield name
    finally:
        del registry[name]
        if before is not None:
            registry[name] = before


def watched_run(
    environment: Environment,
    strategy: Strategy,
    workload: Workload,
    *,
    resolution: str = "span",
    step_time: StepTimeFactory | None = None,
    max_time_s: float | None = None,
) -> Result:
    """Run a workload, watch every step, and check the laws of any run.

    Raises
    ------
    AssertionError
        With a line that says which law is broken.
    """
    watched = Watched(strategy)
    result = run(
        environment,
        watched,
        workload,
        resolution=resolution,
        step_time=step_time,
        max_time_s=max_time_s,
    )
    check_laws(result)
    if max_time_s is None:
        unfinished = result.columns["requests"]["status"] == "unfinished"
        require(not unfinished.any(), "a request is neither finished nor rejected")
        watched.check_end()
    return result


def agreeing_run(
    environment: Environment,
    strategy: Strategy,
    workload: Workload,
    *,
    step_time: StepTimeFactory | None = None,
) -> Result:
    """Run by spans, by steps and, if it is short, by kernels; require equal frames and the laws."""

    def by(resolution: str) -> Result:
        return watched_run(
            environment, strategy, workload, resolution=resolution, step_time=step_time
        )

    spans = by("span")
    assert_same(spans, by("step"))
    if workload.output_len.sum() <= KERNEL_TOKENS:
        assert_same(spans, by("kernel"))
    return spans


def crowd(count: int = 150, gap_s: float = 0.002, seed: int = 7) -> Workload:
    """Return requests that queue in front of the toy cluster, many of which do not fit at once.

    Parameters
    ----------
    count : int
        How many.
    gap_s : float
        Mean time between two arrivals (s); exponential.
    seed : int
        Another seed gives others.
    """
    rng = np.random.default_rng(seed)
    prompts = rng.lognormal(3.3, 0.9, count).clip(1, 100).astype(int).tolist()
    outputs = rng.integers(1, 60, count).tolist()
    gaps = rng.exponential(gap_s, count).tolist()
    return toy_workload(list(zip(gaps, prompts, outputs, strict=True)))


def with_outputs(workload: Workload, outputs: list[int]) -> Workload:
    """Return `workload` with other answers, `outputs` (tokens), repeated as often as needed."""
    return dataclasses.replace(workload, output_len=np.resize(outputs, workload.num_requests))


def assert_same_until(one: Result, other: Result, time_s: float, *, edge: str = "start_s") -> None:
    """Require that two runs by steps do the same steps, and route the same, before `time_s`.

    Parameters
    ----------
    one, other : Result
        Runs at resolution ``"step"``.
    time_s : float
        Up to here (s).
    edge : str
        The steps that begin before it (``"start_s"``), or those that end before it (``"end_s"``).
    """
    mine, theirs = (
        [row for row in _decisions(result, edge) if row[0] < time_s] for result in (one, other)
    )
    for a, b in zip(mine, theirs, strict=False):
        require(a == b, f"before {time_s} s one run has {a} where the other has {b}")
    require(len(mine) == len(theirs), f"before {time_s} s one run does more steps")


def _decisions(result: Result, edge: str) -> list[tuple[Any, ...]]:
    """Decisions with their times: starts or ends of steps and their contents, requests routed."""
    spans, requests = result.columns["spans"], result.columns["requests"]
    names = [edge, "instance", "lane", "kind", "num_decodes", "num_prefills"]
    names += ["prefill_tokens", "context_tokens"]
    steps = zip(*(spans[name].tolist() for name in names), strict=True)
    routed = zip(
        requests["routed_s"].tolist(),
        requests["prefill_instance"].tolist(),
        requests["request_id"].tolist(),
        strict=True,
    )
    return sorted([*steps, *routed], key=lambda row: (row[0], repr(row)))


class HashedRequest(Request):
    """A request whose place in a set is chosen by a test: no decision may depend on it."""

    __slots__ = ("_hash",)

    def __init__(
        self, request_id: int, prompt_len: int, output_len: int, *, hashed: int, priority: int = 0
    ) -> None:
        super().__init__(request_id, 0.0, prompt_len, output_len)
        self._hash = hashed
        self.priority = priority

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        return self is other


@dataclass(frozen=True)
class Ask:
    """A request as a test without a clock sees it."""

    step: int
    """Steps that have been done when it arrives."""
    prompt_len: int
    output_len: int
    """Tokens."""
    priority: int = 0
    """That of its class."""

    def request(self, number: int, hashed: int | None = None) -> HashedRequest:
        """Return it as request `number`; `hashed` is what it hashes to, by default the same."""
        return HashedRequest(
            number,
            self.prompt_len,
            self.output_len,
            hashed=number if hashed is None else hashed,
            priority=self.priority,
        )


ASKS: st.SearchStrategy[list[Ask]] = st.lists(
    st.builds(Ask, st.integers(0, 12), st.integers(1, 100), st.integers(1, 50), st.integers(0, 2)),
    min_size=1,
    max_size=14,
).map(lambda asks: sorted(asks, key=lambda ask: ask.step))
"""Requests for a scheduler or a queue without a clock, in order of arrival."""
OTHER_OUTPUTS: st.SearchStrategy[list[int]] = st.lists(st.integers(1, 50), min_size=14, max_size=14)
"""Other answers for them (tokens)."""


CROWD: Final = [Ask(k // 3, 5 + 37 * k % 90, 12 + 23 * k % 39, 7 * k % 3) for k in range(14)]
"""Three requests a step, of all lengths: a case that is tried before hypothesis draws others."""
OTHERWISE: Final = [62 - ask.output_len for ask in CROWD]
"""Other answers for them (tokens)."""
CROWDED: Final[Asked] = [
    (0.002 * (k % 3 == 0), a.prompt_len, a.output_len) for k, a in enumerate(CROWD)
]
"""The same with a clock."""


def turned(number: int) -> int:
    """Return a hash for `number` under which a set gives small numbers in the other order."""
    return 63 - number


@contextmanager
def common_draws_untouched() -> Iterator[None]:
    """Require that nothing in the block draws from the random streams of the whole process."""
    before = random.getstate(), repr(np.random.get_state())  # noqa: NPY002 (to see if it is used)
    yield
    after = random.getstate(), repr(np.random.get_state())  # noqa: NPY002 (to see if it is used)
    require(before == after, "it draws from `random` or `np.random`: use simcluster.rng.stream")


def digest(result: Result) -> str:
    """Return a digest of all frames of a run."""
    total = hashlib.sha256()
    for name, columns in sorted(result.columns.items()):
        for column, values in sorted(columns.items()):
            data = repr(values.tolist()).encode() if values.dtype == object else values.tobytes()
            total.update(f"{name}.{column}".encode() + data)
    return total.hexdigest()


def notices(contract: type, law: str, message: str, **given: Any) -> None:
    """Check that a contract notices a wrong program: a test of the contract itself.

    Parameters
    ----------
    contract : type
        The contract.
    law : str
        Name of its test, without ``test_``.
    message : str
        Regular expression that its failure must contain.
    **given
        Its fixtures, the wrong program among them, and its parameters.

    Raises
    ------
    AssertionError
        If the law holds, or fails with other words.
    """
    try:
        getattr(contract(), f"test_{law}")(**given)
    except AssertionError as error:
        require(re.search(message, str(error)) is not None, f"it fails, but with: {error}")
    else:
        raise AssertionError(f"{contract.__name__}.test_{law} notices nothing")
