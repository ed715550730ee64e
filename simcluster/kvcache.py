"""The paged KV cache of an instance: a pool of equal blocks, counted in integers."""

from __future__ import annotations

from simcluster.errors import InvariantError


class BlockPool:
    """Blocks of KV cache, taken and given back.

    Parameters
    ----------
    num_blocks : int
        Blocks in the pool, >= 1.
    block_size : int
        Tokens of one block, >= 1.
    watermark : float
        Share of the blocks that admission leaves free, 0 to 1 (vLLM: 0.01).

    Attributes
    ----------
    free_blocks : int
        Blocks nobody holds.
    peak_used : int
        Most blocks ever in use.
    """

    __slots__ = ("block_size", "free_blocks", "num_blocks", "peak_used", "watermark_blocks")

    def __init__(self, num_blocks: int, block_size: int, watermark: float = 0.0) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.watermark_blocks = int(watermark * num_blocks)
        self.free_blocks = num_blocks
        self.peak_used = 0

    @property
    def used_blocks(self) -> int:
        """Blocks in use."""
        return self.num_blocks - self.free_blocks

    @property
    def usage(self) -> float:
        """Share of the blocks in use, 0 to 1."""
        return 1.0 - self.free_blocks / self.num_blocks

    def blocks_for(self, num_tokens: int) -> int:
        """Blocks that hold `num_tokens` tokens of one sequence."""
        return -(-num_tokens // self.block_size)

    def can_admit(self, num_blocks: int) -> bool:
        """Whether a new sequence of `num_blocks` may come in.

        The watermark stays free, except in an empty pool: a sequence that fits alone is let in.
        """
        if self.free_blocks == self.num_blocks:
            return num_blocks <= self.num_blocks
        return self.free_blocks - num_blocks >= self.watermark_blocks

    def allocate(self, num_blocks: int) -> None:
        """Take `num_blocks`.

        Raises
        ------
        InvariantError
            If fewer are free: whoever takes must have asked.
        """
        self.free_blocks -= num_blocks
        if self.free_blocks < 0:
            raise InvariantError(f"{-self.free_blocks} KV blocks more than the pool has")
        used = self.num_blocks - self.free_blocks
        if used > self.peak_used:
            self.peak_used = used

    def release(self, num_blocks: int) -> None:
        """Give `num_blocks` back."""
        self.free_blocks += num_blocks
        if self.free_blocks > self.num_blocks:
            raise InvariantError("more KV blocks given back than the pool has")
