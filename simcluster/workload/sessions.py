"""Conversations: sessions of several turns whose context grows, on shared system prompts."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Final, Literal

import numpy as np
from pydantic import Field

from simcluster.config import Settings
from simcluster.errors import ConfigError
from simcluster.rng import stream
from simcluster.units import FloatArray, IntArray, grid_array
from simcluster.workload.base import (
    DEFAULT_NUM_REQUESTS,
    MAX_TOKENS,
    ArrivalTimes,
    Offer,
    arrivals_before,
)
from simcluster.workload.hashes import BlockHashes
from simcluster.workload.lengths import Median, Sigma
from simcluster.workload.replay import RowLengths
from simcluster.workload.turns import Turns, before_each

TOKENS_PER_ID: Final = 16
"""Tokens of a block with an id."""
MEMORY_SPANS: Final = 30
"""How many mean lengths of a session before time 0 the first of them may have begun."""
SAMPLE: Final = 50_000
"""Sessions from which the mean number of turns under a limit of the context is taken; 0.5 %."""

SAMPLED_TURNS: Final = 1_000_000
"""Turns of the sample, at most."""
MAX_TURNS: Final = 20_000_000
"""More turns than this are not drawn; that number takes 3 GB."""

Spread = Annotated[Sigma, Field(description="Standard deviation of its logarithm.")]


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionArrivals(Settings):
    """Users who ask, read the answer, and ask again with all that was said before in the prompt.

    Sessions arrive as a Poisson process. Each has a geometric number of turns and starts with one
    of several system prompts, the k-th most popular with a share in proportion to k ** -zipf. A
    turn's prompt is the one before, its answer, and a new message. Messages, answers and the gaps
    from turn to turn are lognormal and independent.

    By default the loop is open: a turn arrives a gap after the turn before it, however long the
    answer took. The gap is time to answer plus time to read and write; where the first exceeds it,
    the turn comes too early to find all of its context in a cache. With ``gap_after = "answer"``
    the gap begins with the end of the answer. At another rate the same sessions arrive closer
    together or further apart, and the gaps within them stay.

    The process is stationary from time 0: sessions that began earlier are under way, and their next
    turns come with the context they have reached. Only the caches are empty then.
    """

    has_lengths: ClassVar[bool] = True
    needs_rate: ClassVar[bool] = True

    kind: Literal["sessions"] = "sessions"
    mean_turns: Annotated[float, Field(ge=1, le=1000)] = 5.0
    """Mean number of turns of a session."""
    gap_median_s: Annotated[float, Field(ge=0.001, le=86_400)] = 30.0
    """Median time from one turn to the next (s)."""
    gap_sigma: Spread = 0.8
    gap_after: Literal["arrival", "answer"] = "arrival"
    """From when the gap to the next turn counts: the arrival of the turn before (an open loop), or
    the end of its answer (the user waits for it)."""
    message_median: Median = 60.0
    """Median length of a message of the user (tokens)."""
    message_sigma: Spread = 1.0
    output_median: Median = 180.0
    """Median length of an answer (tokens)."""
    output_sigma: Spread = 0.7
    system_prompts: Annotated[int, Field(ge=1, le=1_000_000)] = 10
    """Different system prompts."""
    system_len: Annotated[int, Field(ge=0, le=MAX_TOKENS)] = 500
    """Length of each of them (tokens)."""
    zipf: Annotated[float, Field(ge=0, le=10)] = 1.0
    """Exponent of their popularity; 0 for equal shares."""
    max_context_len: Annotated[int | None, Field(ge=2, le=MAX_TOKENS)] = None
    """A session ends before a turn whose prompt and answer together are longer (tokens); default:
    no limit."""

    def draw(self, offer: Offer, seed: int) -> ArrivalTimes:
        """Return the turns of the run `seed` (see `ArrivalProcess`)."""
        if not offer.needs_lengths:
            raise ConfigError(
                "workload.lengths",
                None,
                "sessions have lengths of their own: a prompt is what was said before",
                "Leave lengths out.",
            )
        if offer.rate_rps is None:
            raise ConfigError(
                "workload.rate_rps",
                None,
                "sessions need a rate (turns per second)",
                "Set it, or give the rates of a sweep.",
            )
        rate_rps = offer.rate_rps
        if offer.duration_s is None:
            count = offer.num_requests or DEFAULT_NUM_REQUESTS
        else:
            count = len(
                arrivals_before(
                    offer.duration_s, rate_rps, lambda n: self._turns(n, rate_rps, seed).arrival_s
                )
            )
        turns = self._turns(count, rate_rps, seed)
        return ArrivalTimes(
            arrival_s=turns.arrival_s,
            rate_rps=rate_rps,
            lengths=RowLengths(turns.prompt_len, turns.output_len),
            hashes=turns.hashes,
            turns=turns.waits if self.gap_after == "answer" else None,
        )

    def _turns(self, count: int, rate_rps: float, seed: int) -> SessionTurns:
        """Return the first `count` turns from time 0 on at a rate of `rate_rps` turns per second.

        The first n of more turns are the same, as long as they begin with the same sessions.
        """
        memory_s = MEMORY_SPANS * (self.mean_turns - 1) * self.mean_gap_s
        session_rate = rate_rps / self.turns_per_session
        if (expected := session_rate * memory_s * self.mean_turns + count) > MAX_TURNS:
            raise ConfigError(
                "workload.arrivals.mean_turns",
                self.mean_turns,
                f"about {expected:.2g} turns would have to be drawn to find those of sessions that "
                f"are under way at the start, more than {MAX_TURNS:,}",
                "Lower it, gap_median_s, the rate or the number of requests.",
            )
        older = self._sessions("older", -_begins(memory_s, session_rate, seed, "older"), seed)
        older = older.of(np.flatnonzero(older.arrival_s >= 0))
        end_s = count / rate_rps
        while True:
            end_s *= 1.25
            if session_rate * end_s * self.mean_turns > MAX_TURNS:
                raise self._too_long()
            newer = self._sessions("newer", _begins(end_s, session_rate, seed, "newer"), seed)
            turns = older.followed_by(newer)
            chosen = np.flatnonzero(turns.arrival_s < end_s)
            if len(chosen) >= count:
                order = np.argsort(turns.arrival_s[chosen], kind="stable")[:count]
                return turns.of(chosen[order])

    @property
    def mean_gap_s(self) -> float:
        """Mean time from one turn to the next (s)."""
        return self.gap_median_s * math.exp(self.gap_sigma**2 / 2)

    @property
    def turns_per_session(self) -> float:
        """Mean number of turns of a session, those behind `max_context_len` left out."""
        if self.max_context_len is None:
            return self.mean_turns
        num = min(SAMPLE, int(SAMPLED_TURNS / self.mean_turns))
        sample = self._sessions("sample", np.zeros(num), 0)
        if not len(sample.arrival_s):
            raise self._too_long()
        return len(sample.arrival_s) / num

    def _too_long(self) -> ConfigError:
        """Return the error that says that no turn, or hardly one, fits."""
        return ConfigError(
            "workload.arrivals.max_context_len",
            self.max_context_len,
            f"hardly a first turn fits behind a system prompt of {self.system_len} tokens",
            "Raise it, or lower system_len, message_median or output_median.",
        )

    def _sessions(self, name: str, begin_s: FloatArray, seed: int) -> SessionTurns:
        """Return all turns of the sessions that begin at `begin_s` (s), session by session.

        The first sessions of more are the same.
        """

        def draws(what: str) -> np.random.Generator:
            return stream(seed, "arrivals", name, what)

        num_sessions = len(begin_s)
        count = np.ones(num_sessions, dtype=np.int64)
        if self.mean_turns > 1:
            # Geometric by inversion of the distribution function.
            levels = draws("turns").random(num_sessions)
            count += (np.log1p(-levels) / np.log1p(-1 / self.mean_turns)).astype(np.int64)
        session = np.repeat(np.arange(num_sessions), count)
        starts = np.cumsum(count) - count

        def within(values: FloatArray | IntArray) -> Any:
            """Sums from the first turn of each session to each turn."""
            sums = np.cumsum(values)
            return sums - (sums[starts] - values[starts])[session]

        def tokens(what: str, median: float, sigma: float) -> IntArray:
            normal = draws(what).standard_normal(len(session))
            lengths = np.rint(np.minimum(median * np.exp(sigma * normal), MAX_TOKENS))
            return np.maximum(lengths, 1).astype(np.int64)

        gaps = self.gap_median_s * np.exp(
            self.gap_sigma * draws("gaps").standard_normal(len(session))
        )
        gaps[starts] = 0.0
        message = tokens("messages", self.message_median, self.message_sigma)
        output = tokens("outputs", self.output_median, self.output_sigma)
        prompt = self.system_len + within(message + output) - output
        popularity = np.arange(1, self.system_prompts + 1) ** -self.zipf
        shares = np.cumsum(popularity) / popularity.sum()
        system = np.searchsorted(shares[:-1], draws("system").random(num_sessions), side="right")
        # Ids of the system prompts come first, then those of each session's own tokens.
        blocks = -(-(prompt + output) // TOKENS_PER_ID)
        own = blocks[starts + count - 1]
        common = self.system_len // TOKENS_PER_ID
        first_own = self.system_prompts * common + np.cumsum(own) - own
        turns = SessionTurns(
            arrival_s=begin_s[session] + within(gaps),
            prompt_len=prompt,
            output_len=output,
            system_id=system[session] * common,
            own_id=first_own[session],
            session=session,
            gap_s=gaps,
            system_blocks=common,
        )
        most = min(self.max_context_len or MAX_TOKENS, MAX_TOKENS)
        return turns.of(np.flatnonzero(prompt + output <= most))


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionTurns:
    """Turns of sessions, with what their block ids are made from."""

    arrival_s: FloatArray
    """Arrivals (s), shape ``(num_turns,)``."""
    prompt_len: IntArray
    output_len: IntArray
    """Tokens, shape ``(num_turns,)``."""
    system_id: IntArray
    own_id: IntArray
    """First id of the system prompt's blocks, and of those behind them; shape ``(num_turns,)``."""
    session: IntArray
    """Whose each turn is, shape ``(num_turns,)``."""
    gap_s: FloatArray
    """Time since the turn before it (s), 0 for a first turn; shape ``(num_turns,)``."""
    system_blocks: int
    """Full blocks of a system prompt."""

    def of(self, rows: IntArray) -> SessionTurns:
        """Return the turns `rows`, in that order."""
        return SessionTurns(
            arrival_s=self.arrival_s[rows],
            prompt_len=self.prompt_len[rows],
            output_len=self.output_len[rows],
            system_id=self.system_id[rows],
            own_id=self.own_id[rows],
            session=self.session[rows],
            gap_s=self.gap_s[rows],
            system_blocks=self.system_blocks,
        )

    def followed_by(self, others: SessionTurns) -> SessionTurns:
        """Return these and `others`, whose own ids are moved behind ours."""
        last = -(-(self.prompt_len + self.output_len) // TOKENS_PER_ID)
        shift = int((self.own_id + last).max(initial=0))
        return SessionTurns(
            arrival_s=np.concatenate([self.arrival_s, others.arrival_s]),
            prompt_len=np.concatenate([self.prompt_len, others.prompt_len]),
            output_len=np.concatenate([self.output_len, others.output_len]),
            system_id=np.concatenate([self.system_id, others.system_id]),
            own_id=np.concatenate([self.own_id, others.own_id + shift]),
            session=np.concatenate(
                [self.session, others.session + 1 + self.session.max(initial=0)]
            ),
            gap_s=np.concatenate([self.gap_s, others.gap_s]),
            system_blocks=self.system_blocks,
        )

    @property
    def waits(self) -> Turns:
        """Every turn after the answer to the one before it, where that is among these."""
        after = before_each(self.session)
        return Turns(after=after, think_s=grid_array(np.where(after < 0, 0.0, self.gap_s)))

    @property
    def hashes(self) -> BlockHashes:
        """Ids of prompt and answer: one run for the system prompt, one for the rest."""
        tokens = self.prompt_len + self.output_len
        own = -(-tokens // TOKENS_PER_ID) - self.system_blocks
        first, count = self.own_id, own
        if self.system_blocks:
            first = np.column_stack([self.system_id, self.own_id]).ravel()
            count = np.column_stack([np.full_like(own, self.system_blocks), own]).ravel()
        runs = 2 if self.system_blocks else 1
        return BlockHashes(
            tokens_per_id=TOKENS_PER_ID,
            num_tokens=tokens,
            first=first,
            count=count,
            offsets=np.arange(0, runs * len(tokens) + 1, runs),
        )


def _begins(until_s: float, rate_rps: float, seed: int, name: str) -> FloatArray:
    """Return the points of a Poisson process from 0 to `until_s` (s), sorted."""
    count = 64
    while True:
        gaps = stream(seed, "arrivals", name, "sessions").standard_exponential(count)
        begin_s: FloatArray = np.cumsum(gaps) / rate_rps
        if begin_s[-1] >= until_s:
            return begin_s[: np.searchsorted(begin_s, until_s)]
        count *= 2
