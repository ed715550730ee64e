"""The paged KV cache of an instance: a pool of equal blocks, counted in integers."""

from __future__ import annotations

from typing import ClassVar

from simcluster.errors import InvariantError
from simcluster.kvcache.layout import BlockLayout
from simcluster.request import Request


class BlockPool:
    """Blocks of KV cache, taken and given back; every sequence has blocks of its own.

    Parameters
    ----------
    num_blocks : int
        Blocks in the pool, >= 1.
    block_size : int
        Tokens of one block, >= 1.
    watermark : float
        Share of the blocks that admission leaves free, 0 to 1 (vLLM: 0.01).
    layout : BlockLayout, optional
        Blocks of a sequence; by default one block per `block_size` tokens.

    Attributes
    ----------
    free_blocks : int
        Blocks nobody holds.
    peak_used : int
        Most blocks ever in use.
    num_asked, num_found : int
        Full blocks of their prompts that requests looked for when they came in, and those that they
        found.
    blocks_for, prompt_blocks : callable
        Those of the layout: blocks of a sequence that decodes, and of one that is prefilled.
    """

    __slots__ = (
        "block_size",
        "blocks_for",
        "free_blocks",
        "layout",
        "num_asked",
        "num_blocks",
        "num_found",
        "peak_used",
        "prompt_blocks",
        "watermark_blocks",
    )

    shares: ClassVar[bool] = False
    """Sequences with a common prefix share its blocks."""

    def __init__(
        self,
        num_blocks: int,
        block_size: int,
        watermark: float = 0.0,
        layout: BlockLayout | None = None,
    ) -> None:
        self.num_blocks = num_blocks
        self.layout = BlockLayout(block_size) if layout is None else layout
        self.block_size = self.layout.block_size
        self.blocks_for = self.layout.blocks_for
        self.prompt_blocks = self.layout.prompt_blocks
        self.watermark_blocks = int(watermark * num_blocks)
        self.free_blocks = num_blocks
        self.peak_used = 0
        self.num_asked = 0
        self.num_found = 0

    @property
    def used_blocks(self) -> int:
        """Blocks in use."""
        return self.num_blocks - self.free_blocks

    @property
    def usage(self) -> float:
        """Share of the blocks in use, 0 to 1."""
        return 1.0 - self.free_blocks / self.num_blocks

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

    # --- sequence by sequence -----------------------------------------------------------------

    def find(self, request: Request, num_tokens: int) -> tuple[int, int]:
        """Leading blocks of `request` that are here, and blocks of the pool held for them already.

        Parameters
        ----------
        request : Request
            Who asks.
        num_tokens : int
            Tokens that it needs the KV of, >= 1; the last of them is never looked for.

        Returns
        -------
        tuple of int
            Both 0 where prefixes are not reused.
        """
        return 0, 0

    def take(self, request: Request, num_blocks: int, num_found: int) -> None:
        """Take `num_blocks` for `request`, of which it shares the first `num_found`.

        `num_found` is what `find` has just said.
        """
        # As `allocate`, without the call: every request comes through here.
        self.free_blocks -= num_blocks
        if self.free_blocks < 0:
            raise InvariantError(f"{-self.free_blocks} KV blocks more than the pool has")
        used = self.num_blocks - self.free_blocks
        if used > self.peak_used:
            self.peak_used = used

    def computed(self, request: Request) -> None:
        """Hear that the KV of the first ``request.num_computed_tokens`` tokens is there."""

    def leave(self, request: Request, num_blocks: int) -> None:
        """Give back the `num_blocks` of `request`; its ``num_computed_tokens`` must be of now."""
        self.free_blocks += num_blocks
        if self.free_blocks > self.num_blocks:
            raise InvariantError("more KV blocks given back than the pool has")

    def settle(self, taken_blocks: int) -> None:
        """Hear that `taken_blocks` of the free blocks are taken by a step under way."""
