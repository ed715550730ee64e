"""Ids of prompt blocks as traces have them, turned into ids that stand for a whole prefix."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from simcluster.units import IntArray

_MAX_ID: Final = 2**53
_SIZES: Final = tuple(1 << k for k in range(14))
"""Block sizes that a trace is tried with (tokens)."""


class IdColumn:
    """Ids of the blocks of every prompt, row by row.

    An id may be a whole number of any size or a text; equal ids mean equal blocks.

    Attributes
    ----------
    ends : list of int
        Ids up to the end of each row.
    """

    def __init__(self) -> None:
        self._parts: list[IntArray] = []
        self._codes: dict[Any, int] = {}
        self._coded = False
        self.ends: list[int] = []

    def skip(self, num_rows: int) -> None:
        """Add rows without ids."""
        self.ends += [self.ends[-1] if self.ends else 0] * num_rows

    def add(self, rows: Sequence[Sequence[Any]]) -> None:
        """Add the ids of some rows, each a list of whole numbers or texts."""
        total = self.ends[-1] if self.ends else 0
        for row in rows:
            total += len(row)
            self.ends.append(total)
        flat = [one for row in rows for one in row]
        if not self._coded:
            try:
                if all(type(one) is int for one in flat):
                    self._parts.append(np.array(flat, dtype=np.int64))
                    return
            except OverflowError:
                pass
            # From here on ids are numbered as they come; so are those that were read before.
            self._coded = True
            self._parts = [self._numbered(part.tolist()) for part in self._parts]
        self._parts.append(self._numbered(flat))

    def _numbered(self, flat: Sequence[Any]) -> IntArray:
        codes = self._codes
        return np.array([codes.setdefault(one, len(codes)) for one in flat], dtype=np.int64)

    def prefixes(self) -> IntArray:
        """Return ids that stand for all tokens up to the end of their block, shape ``(num_ids,)``.

        Those of the file where they do already.
        """
        ids = np.concatenate(self._parts) if self._parts else np.empty(0, np.int64)
        ends = np.array(self.ends, dtype=np.int64)
        return ids if _are_chains(ids, ends) else chained(ids, ends)


def are_ids(cell: object) -> bool:
    """Tell whether a cell of a trace is a list of ids, whole numbers or texts."""
    return isinstance(cell, list) and all(type(one) in (int, str) for one in cell)


def _before(ids: IntArray, ends: IntArray) -> IntArray:
    """Return the id before each id in its row, -1 where it is the first."""
    before = np.concatenate([[-1], ids[:-1]]) if len(ids) else ids
    starts = np.concatenate([[0], ends[:-1]])
    before[starts[starts < ends]] = -1
    return before


def _are_chains(ids: IntArray, ends: IntArray) -> bool:
    """Tell whether every id follows the same id wherever it stands, and is of a size to use."""
    if len(ids) and (ids.min() < 0 or ids.max() > _MAX_ID):
        return False
    before = _before(ids, ends)
    order = np.argsort(ids, kind="stable")
    again = np.flatnonzero(ids[order][1:] == ids[order][:-1])
    return bool((before[order[1:]][again] == before[order[:-1]][again]).all())


def chained(ids: IntArray, ends: IntArray) -> IntArray:
    """Return one id for each different beginning of a row, from ids of single blocks.

    Parameters
    ----------
    ids : ndarray of int64
        Ids of blocks, row by row: equal ids are equal blocks, whatever stands before them.
    ends : ndarray of int64
        Ids up to the end of each row, shape ``(num_rows,)``.

    Returns
    -------
    ndarray of int64
        The same for two blocks if they and all before them in their rows are the same. Numbered in
        the order in which they come first, so that what is new in a row is consecutive.
    """
    starts = np.concatenate([[0], ends[:-1]])
    _, block = np.unique(ids, return_inverse=True)
    num_blocks = int(block.max(initial=0)) + 1
    node = np.empty(len(ids), np.int64)
    rows, depth, num_nodes = np.flatnonzero(starts < ends), 0, 0
    parent = np.zeros(len(rows), np.int64)
    while len(rows):
        here = starts[rows] + depth
        _, found = np.unique(parent * num_blocks + block[here], return_inverse=True)
        node[here] = num_nodes + found
        parent, num_nodes = found, num_nodes + int(found.max()) + 1
        depth += 1
        longer = starts[rows] + depth < ends[rows]
        rows, parent = rows[longer], parent[longer]
    _, first, again = np.unique(node, return_index=True, return_inverse=True)
    rank = np.empty(len(first), np.int64)
    rank[np.argsort(first)] = np.arange(len(first))
    return rank[again]


def fitting_sizes(prompt_len: IntArray, num_ids: IntArray) -> list[int]:
    """Return the powers of two that the blocks of a trace can have (tokens).

    Parameters
    ----------
    prompt_len, num_ids : ndarray of int64
        Tokens of each prompt and ids that it has, shape ``(num_rows,)``. Each id is a block, of
        which the last may be left out where it is not full; rows without ids say nothing.
    """
    prompt_len, num_ids = prompt_len[num_ids > 0], num_ids[num_ids > 0]
    if not len(num_ids):
        return []
    return [
        size
        for size in _SIZES
        if np.all((num_ids == prompt_len // size) | (num_ids == -(-prompt_len // size)))
    ]
