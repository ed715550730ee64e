"""Blocks of a trace, drawn with repetition: another day of the same traffic.

The block bootstrap (Künsch, The jackknife and the bootstrap for general stationary observations,
Annals of Statistics 17, 1989): the trace is cut into blocks of equal time; a run is made of blocks
drawn at random, one after the other. What happens within a block stays: bursts, lengths in their
order, prompts in common, sessions. What spans several blocks is lost.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, fields
from typing import Annotated, ClassVar, Final, Literal

import numpy as np
from pydantic import Field

from simcluster.errors import ConfigError, DataError
from simcluster.rng import stream
from simcluster.units import FloatArray, IntArray
from simcluster.workload.base import ArrivalTimes, BoolArray, Offer
from simcluster.workload.hashes import BlockHashes
from simcluster.workload.replay import RowLengths, TraceArrivals, TraceFile, file_state
from simcluster.workload.traces import Trace
from simcluster.workload.turns import Turns

_AT_ONCE: Final = 64
"""Blocks drawn at first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceBlocks(TraceFile):
    """Arrivals and lengths of a trace in blocks of equal time, drawn with repetition.

    Of a rate of ``offer.rate_rps`` requests/s, a turn of a session being a request. A session is in
    the block in which it begins; waits for answers stay as they are.
    """

    has_lengths: ClassVar[bool] = True

    kind: Literal["trace-blocks"] = "trace-blocks"
    num_blocks: Annotated[int, Field(ge=1)]
    """Blocks that the trace is cut into."""
    thin: bool = False
    """Requests and sessions are left out at random; else time is scaled."""

    @classmethod
    def of(cls, trace: TraceArrivals, *, num_blocks: int, thin: bool) -> TraceBlocks:
        """Return the blocks of a trace, or of the window of it."""
        own = {f.name: getattr(trace, f.name) for f in fields(TraceFile)}
        return cls(num_blocks=num_blocks, thin=thin, **own)

    @property
    def _cut(self) -> _Cut:
        return _cut(self, file_state(self.path))

    @property
    def num_requests(self) -> int:
        """Requests of the trace."""
        return len(self._cut.trace.prompt_len)

    @property
    def turns_s(self) -> float:
        """Mean time that the waits of a session take together (s), its answers apart; 0 without."""
        turns = self._cut.trace.turns
        return 0.0 if turns is None else float(turns.think_s.sum()) / len(self._cut.begin_s)

    @property
    def turns_per_session(self) -> float:
        """Mean number of turns of a session; 1 without."""
        return self.num_requests / len(self._cut.begin_s)

    @property
    def rate_rps(self) -> float:
        """The trace's own rate (requests/s), a turn of a session being a request."""
        cut = self._cut
        return len(cut.trace.prompt_len) / (self.num_blocks * cut.block_s)

    @property
    def block_s(self) -> float:
        """Length of a block (s of the trace)."""
        return self._cut.block_s

    def draw(self, offer: Offer, seed: int) -> ArrivalTimes:
        """Return the first requests of blocks drawn from `seed` (see `ArrivalProcess`).

        The same blocks at any rate, and with thinning those that stay at a rate stay at all above.
        """
        assert offer.rate_rps is not None, "a search says the rate"
        assert offer.num_requests is not None, "a search says how many"
        cut = self._cut
        share = offer.rate_rps / self.rate_rps
        if self.thin and share > 1:
            raise ConfigError(
                "workload.goodput_by",
                "thin",
                f"a search asks for {offer.rate_rps:.4g} requests/s, and the trace has "
                f"{self.rate_rps:.4g}: leaving some out lowers a rate alone",
                'Use "scale", which has no limit.',
            )
        which, begin_s, copy = self._sessions(cut, offer.num_requests, share, seed)
        if not self.thin:
            begin_s = begin_s / share
        counts = cut.num_turns[which]
        ends = np.cumsum(counts)
        session = np.repeat(np.arange(len(which)), counts)
        moved = np.arange(len(session)) - (ends - counts)[session]
        rows = (cut.first_row[which][session] + moved)[: offer.num_requests]
        session = session[: offer.num_requests]
        arrival_s, turns = begin_s[session], None
        if cut.trace.turns is not None:
            shift = np.arange(len(rows)) - rows
            after = cut.trace.turns.after[rows]
            waits = after >= 0
            turns = Turns(
                after=np.where(waits, after + shift, -1), think_s=cut.trace.turns.think_s[rows]
            )
            assert cut.trace.arrival_s is not None
            since_s = cut.trace.arrival_s[rows] - cut.begin_s[which[session]]
            arrival_s = arrival_s + np.where(waits, np.maximum(since_s, 0.0), 0.0)
        return ArrivalTimes(
            arrival_s=arrival_s,
            rate_rps=offer.rate_rps,
            lengths=RowLengths(cut.trace.prompt_len[rows], cut.trace.output_len[rows]),
            hashes=cut.hashes_of(rows, copy[session]),
            turns=turns,
            notes=self.notes(),
        )

    def _sessions(
        self, cut: _Cut, num_requests: int, share: float, seed: int
    ) -> tuple[IntArray, FloatArray, IntArray]:
        """Return the sessions of a run in the order of time, when they begin (s of the trace).

        And how often the block of each had been drawn before.
        """
        num = _AT_ONCE
        while True:
            blocks = stream(seed, "arrivals", "blocks").random(num) * self.num_blocks
            block = blocks.astype(np.int64)
            counts = cut.first[block + 1] - cut.first[block]
            place = np.repeat(np.arange(num), counts)
            within = np.arange(len(place)) - np.repeat(np.cumsum(counts) - counts, counts)
            which = cut.first[block][place] + within
            if self.thin:
                kept = stream(seed, "arrivals", "thinning").random(len(which)) < share
                which, place = which[kept], place[kept]
            if int(cut.num_turns[which].sum()) >= num_requests:
                break
            num *= 2
        begin_s = cut.begin_s[which] + (place - block[place]) * cut.block_s
        # Sums of what is not on the time grid may go back by an ulp.
        return which, np.maximum.accumulate(begin_s), _times_before(block)[place]


def _times_before(values: IntArray) -> IntArray:
    """Return how often each value stands before its place."""
    order = np.argsort(values, kind="stable")
    starts = np.flatnonzero(np.diff(values[order], prepend=-1))
    sizes = np.diff(np.append(starts, len(values)))
    before = np.empty(len(values), dtype=np.int64)
    before[order] = np.arange(len(values)) - np.repeat(starts, sizes)
    return before


@dataclass(frozen=True, slots=True)
class _Cut:
    """A trace in blocks; a request that is no turn of a session is a session of one."""

    trace: Trace
    block_s: float
    """Length of a block (s)."""
    begin_s: FloatArray
    """When each session begins (s), sorted, shape ``(num_sessions,)``."""
    first_row: IntArray
    num_turns: IntArray
    """First row and number of turns of each session."""
    first: IntArray
    """First session of each block, and the number of all; shape ``(num_blocks + 1,)``."""
    hashes: BlockHashes | None
    is_own: BoolArray
    """Of each run of ids in `hashes`, whether its ids are in one block alone."""
    next_id: int
    """The first id that the trace does not have."""

    def hashes_of(self, rows: IntArray, copy: IntArray) -> BlockHashes | None:
        """Return the ids of the requests `rows`, of the `copy`-th copy of their block each.

        Ids of one block alone are new in each copy: another day asks other questions, behind the
        same system prompts.
        """
        if self.hashes is None:
            return None
        drawn = self.hashes.of_rows(rows)
        counts = np.diff(drawn.offsets)
        runs = np.repeat(self.hashes.offsets[:-1][rows] - drawn.offsets[:-1], counts)
        own = self.is_own[runs + np.arange(len(runs))]
        return BlockHashes(
            tokens_per_id=drawn.tokens_per_id,
            num_tokens=drawn.num_tokens,
            first=drawn.first + np.where(own, np.repeat(copy, counts) * self.next_id, 0),
            count=drawn.count,
            offsets=drawn.offsets,
        )


@functools.lru_cache(maxsize=2)
def _cut(blocks: TraceBlocks, state: tuple[int, ...]) -> _Cut:
    """Return a trace in blocks, for as long as its file has the same `state`."""
    trace, num_blocks = blocks.read(), blocks.num_blocks
    assert trace.arrival_s is not None
    num_rows = len(trace.prompt_len)
    first_row = np.arange(num_rows)
    if trace.turns is not None:
        first_row = np.flatnonzero(trace.turns.after < 0)
    begin_s = trace.arrival_s[first_row]
    num = len(first_row)
    if not begin_s[-1] > 0:
        raise DataError(f"{blocks.path}: all {num} requests arrive at once: there is no rate.")
    # With a gap after the last, so that the mean rate is that of the trace.
    block_s = float(begin_s[-1]) * num / (num - 1) / num_blocks
    block = np.minimum((begin_s / block_s).astype(np.int64), num_blocks - 1)
    num_turns = np.diff(np.append(first_row, num_rows))
    hashes, is_own, next_id = None, np.empty(0, dtype=np.bool_), 0
    if trace.hashes is not None and len(trace.hashes.first):
        hashes, is_own = _told_apart(trace.hashes, np.repeat(block, num_turns))
        next_id = int((hashes.first + hashes.count).max())
    return _Cut(
        trace=trace,
        block_s=block_s,
        begin_s=begin_s,
        first_row=first_row,
        num_turns=num_turns,
        first=np.searchsorted(block, np.arange(num_blocks + 1)),
        hashes=hashes,
        is_own=is_own,
        next_id=next_id,
    )


def _told_apart(hashes: BlockHashes, block: IntArray) -> tuple[BlockHashes, BoolArray]:
    """Return `hashes` in runs whose ids are all in one block of the trace, or all in several.

    Parameters
    ----------
    hashes : BlockHashes
        Of all requests of the trace.
    block : ndarray of int64
        Block of each request, shape ``(num_requests,)``.

    Returns
    -------
    hashes, is_own : BlockHashes, ndarray of bool
        The ids as before; and of each run whether its ids are in one block.
    """
    ends = np.cumsum(hashes.count)
    starts = ends - hashes.count
    ids = np.repeat(hashes.first - starts, hashes.count) + np.arange(int(hashes.count.sum()))
    id_ends = np.concatenate([[0], ends])[hashes.offsets]  # of each request, and the first start
    block_of_id = np.repeat(block, np.diff(id_ends))
    order = np.argsort(ids, kind="stable")
    groups = np.flatnonzero(np.diff(ids[order], prepend=-1))
    least = np.minimum.reduceat(block_of_id[order], groups)
    most = np.maximum.reduceat(block_of_id[order], groups)
    own = np.empty(len(ids), dtype=np.bool_)
    own[order] = np.repeat(least == most, np.diff(np.append(groups, len(ids))))
    begins_run = np.zeros(len(ids), dtype=np.bool_)
    begins_run[starts] = True
    begins_run[1:] |= own[1:] != own[:-1]
    begins = np.flatnonzero(begins_run)
    return (
        BlockHashes(
            tokens_per_id=hashes.tokens_per_id,
            num_tokens=hashes.num_tokens,
            first=ids[begins],
            count=np.diff(np.append(begins, len(ids))),
            offsets=np.searchsorted(begins, id_ends),
        ),
        own[begins],
    )
