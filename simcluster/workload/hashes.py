"""Which tokens of the requests are the same: ids of prompt blocks, in arrays."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from simcluster.errors import ConfigError
from simcluster.units import IntArray


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockHashes:
    """Ids of the blocks of tokens of every request, as runs of ids that follow one another.

    An id stands for all tokens up to the end of its block, so equal ids mean an equal prefix. The
    ids of a request start with its prompt and may go on into its answer; what lies behind them is
    shared with nobody.
    """

    tokens_per_id: int
    """Tokens of a block here, >= 1; the last block of a request may have fewer."""
    num_tokens: IntArray
    """Tokens of each request that its ids stand for, shape ``(num_requests,)``."""
    first: IntArray
    count: IntArray
    """First id and length of each run, shape ``(num_runs,)``."""
    offsets: IntArray
    """Where the runs of each request start, and the end; shape ``(num_requests + 1,)``."""

    @classmethod
    def of_ids(
        cls, ids: IntArray, row_starts: IntArray, num_tokens: IntArray, tokens_per_id: int
    ) -> BlockHashes:
        """Return the hashes of requests whose ids follow one another in one array.

        Parameters
        ----------
        ids : ndarray of int64
            All ids, request by request, shape ``(num_ids,)``.
        row_starts : ndarray of int64
            Where each request's start, and the end, shape ``(num_requests + 1,)``.
        num_tokens : ndarray of int64
            Tokens of each request that can be shared, at most; shape ``(num_requests,)``.
        tokens_per_id : int
            Tokens of a block.
        """
        starts_run = np.ones(len(ids), dtype=np.bool_)
        starts_run[1:] = np.diff(ids) != 1
        inner = row_starts[row_starts < len(ids)]
        starts_run[inner] = True
        begins = np.flatnonzero(starts_run)
        return cls(
            tokens_per_id=tokens_per_id,
            num_tokens=np.minimum(num_tokens, np.diff(row_starts) * tokens_per_id),
            first=ids[begins],
            count=np.diff(np.append(begins, len(ids))),
            offsets=np.searchsorted(begins, row_starts),
        )

    @property
    def num_requests(self) -> int:
        """Requests that have ids, or none of them."""
        return len(self.offsets) - 1

    def of_requests(self, first: int, last: int) -> BlockHashes:
        """Return the hashes of the requests from `first` to before `last`."""
        offsets = self.offsets[first : last + 1]
        return BlockHashes(
            tokens_per_id=self.tokens_per_id,
            num_tokens=self.num_tokens[first:last],
            first=self.first[offsets[0] : offsets[-1]],
            count=self.count[offsets[0] : offsets[-1]],
            offsets=offsets - offsets[0],
        )

    def of_rows(self, rows: IntArray) -> BlockHashes:
        """Return the hashes of the requests `rows`, in that order."""
        counts = np.diff(self.offsets)[rows]
        offsets = np.concatenate([[0], np.cumsum(counts)])
        place = np.repeat(self.offsets[:-1][rows] - offsets[:-1], counts) + np.arange(offsets[-1])
        return BlockHashes(
            tokens_per_id=self.tokens_per_id,
            num_tokens=self.num_tokens[rows],
            first=self.first[place],
            count=self.count[place],
            offsets=offsets,
        )

    def cut_to(self, num_tokens: IntArray) -> BlockHashes:
        """Return the hashes with at most `num_tokens`, shape ``(num_requests,)``, of each."""
        return replace(self, num_tokens=np.minimum(self.num_tokens, num_tokens))

    def runs(self, request: int, block_size: int, *, partial: bool = False) -> tuple[range, ...]:
        """Return the ids of the full blocks of `block_size` tokens of one request.

        Parameters
        ----------
        request : int
            Position in the workload.
        block_size : int
            Tokens of a block of the KV cache; a multiple or a divisor of `tokens_per_id`
            (see `check_block_size`).
        partial : bool
            Also the last one if it is not full.

        Returns
        -------
        tuple of range
            The ids, run by run. A block that is longer than ours has the id of our last block in
            it; one of ours that is longer than the cache's gives several ids.
        """
        where = slice(self.offsets[request], self.offsets[request + 1])
        pairs = zip(self.first[where].tolist(), self.count[where].tolist(), strict=True)
        tokens = int(self.num_tokens[request])
        left = -(-tokens // block_size) if partial else tokens // block_size
        runs = []
        position = 0
        for a, n in pairs:
            if block_size <= self.tokens_per_id:
                ratio = self.tokens_per_id // block_size
                run = range(a * ratio, (a + n) * ratio)[:left]
            else:
                ratio = block_size // self.tokens_per_id
                run = range(a + -(position + 1) % ratio, a + n, ratio)[:left]
                position += n
            if len(run):
                runs.append(run)
                left -= len(run)
        return tuple(runs)

    def check_block_size(self, block_size: int) -> None:
        """Check that the blocks of the KV cache and the hashed ones fit into each other.

        Raises
        ------
        ConfigError
            If neither size divides the other.
        """
        small, large = sorted((block_size, self.tokens_per_id))
        if large % small:
            raise ConfigError(
                "engine.block_size",
                block_size,
                f"the workload's prefixes are hashed in blocks of {self.tokens_per_id} tokens, and "
                "neither size divides the other",
                f"Use a divisor or a multiple of {self.tokens_per_id}, or turn prefix_caching off.",
            )
