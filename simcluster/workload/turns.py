"""Conversations: which turn waits for which answer, and the prompts that turns add up to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import numpy as np

from simcluster.errors import DataError
from simcluster.units import FloatArray, IntArray
from simcluster.workload.hashes import BlockHashes

TurnLengths = Literal["auto", "whole", "added"]
TOKENS_PER_ID: Final = 16
"""Tokens of a block of a conversation whose trace has no block ids."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Turns:
    """Which requests wait for the answer to another one."""

    after: IntArray
    """Request that is answered before, of a smaller number; -1 for one that waits for none. Shape
    ``(num_requests,)``."""
    think_s: FloatArray
    """From the end of that answer to the arrival (s), on the time grid, >= 0; 0 without one."""

    def of_requests(self, first: int, last: int) -> Turns:
        """Return those of the requests from `first` to before `last`; none may wait for others."""
        after = self.after[first:last]
        return Turns(after=np.where(after < 0, -1, after - first), think_s=self.think_s[first:last])


@dataclass(frozen=True, slots=True, kw_only=True)
class Sessions:
    """The turns of a trace, each with the one before it in its session."""

    after: IntArray
    """Row of the turn before; -1 for the first. Shape ``(num_rows,)``."""
    order: IntArray
    """The rows with all turns of a session behind each other, in their order."""

    @classmethod
    def of(cls, labels: Sequence[object]) -> Sessions:
        """Return the sessions of rows with these labels; a row without one (None) is alone."""
        number: dict[object, int] = {}
        which = np.array(
            [
                number.setdefault(("row", row) if label is None else ("label", label), len(number))
                for row, label in enumerate(labels)
            ],
            dtype=np.int64,
        )
        return cls(after=before_each(which), order=np.argsort(which, kind="stable"))

    @property
    def later(self) -> IntArray:
        """Rows that are not the first of their session."""
        return np.flatnonzero(self.after >= 0)


def before_each(group: IntArray) -> IntArray:
    """Return the row before each row in its group, -1 for the first of a group."""
    order = np.argsort(group, kind="stable")
    before = np.full(len(group), -1, dtype=np.int64)
    same = group[order[1:]] == group[order[:-1]]
    before[order[1:][same]] = order[:-1][same]
    return before


def are_whole(
    file: Path,
    sessions: Sessions,
    prompt_len: IntArray,
    output_len: IntArray,
    first_id: IntArray,
) -> tuple[bool, str]:
    """Tell whether the prompts of later turns are whole, and from what.

    Returns
    -------
    whole, why : bool, str
        The reason in words.

    Raises
    ------
    DataError
        If lengths and ids contradict each other.

    Notes
    -----
    AIPerf adds a turn to all that was said before it, unless the row carries its whole context
    (docs/reference/conversation-context-mode.md). A turn that begins with the block that the turn
    before it begins with is whole. One that is shorter than the turn before and its answer is not.
    """
    later = sessions.later
    before = sessions.after[later]
    grows = prompt_len[later] >= prompt_len[before] + output_len[before]
    with_ids = (first_id[later] >= 0) & (first_id[before] >= 0)
    same = with_ids & (first_id[later] == first_id[before])
    if with_ids.any() and same[with_ids].all():
        return True, "each begins with the blocks of the turn before"
    if same.any() or (with_ids.any() and grows.all()):
        raise DataError(
            f"{file}: it is not clear whether input_length of a later turn is its whole prompt, or "
            'what is added to the turn before and its answer. Set turns = "whole" or "added" in '
            "workload.trace."
        )
    return False, "as AIPerf replays them"


def added_up(sessions: Sessions, added: IntArray, output_len: IntArray) -> IntArray:
    """Return the prompts (tokens) of turns that add `added` tokens to all that was said before."""
    prompt_len = added.copy()
    for row in sessions.order.tolist():
        if (before := sessions.after[row]) >= 0:
            prompt_len[row] += prompt_len[before] + output_len[before]
    return prompt_len


def conversation_hashes(
    sessions: Sessions, prompt_len: IntArray, output_len: IntArray, first: BlockHashes | None
) -> BlockHashes:
    """Return the block ids, of prompt and answer, of turns that add to all that was said before.

    Parameters
    ----------
    sessions : Sessions
        Which turns follow which.
    prompt_len, output_len : ndarray of int64
        Whole prompts, and answers (tokens).
    first : BlockHashes or None
        Ids of prompts as the trace has them. The full blocks of first turns may be shared between
        sessions; all others are the session's own.
    """
    size = TOKENS_PER_ID if first is None else first.tokens_per_id
    blocks = -(-(prompt_len + output_len) // size)
    root = np.arange(len(blocks))
    for row in sessions.order.tolist():
        if (before := sessions.after[row]) >= 0:
            root[row] = root[before]
    longest = np.zeros(len(blocks), np.int64)
    np.maximum.at(longest, root, blocks)
    next_id = 0
    if first is not None and len(first.first):
        next_id = int((first.first + first.count).max())
    own = next_id + np.cumsum(longest) - longest
    starts, counts, offsets = [], [], [0]
    for begin, count in zip(root.tolist(), blocks.tolist(), strict=True):
        runs = () if first is None else first.runs(begin, size)
        rest = count - sum(map(len, runs))
        starts += [*(run.start for run in runs), int(own[begin])]
        counts += [*map(len, runs), rest]
        offsets.append(len(starts))
    return BlockHashes(
        tokens_per_id=size,
        num_tokens=prompt_len + output_len,
        first=np.array(starts, np.int64),
        count=np.array(counts, np.int64),
        offsets=np.array(offsets, np.int64),
    )
