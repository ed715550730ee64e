"""How many KV blocks a sequence holds, by groups of layers that cache alike."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


class LimitedGroup(NamedTuple):
    """Layers that keep a bounded number of tokens, or a state: windows, chunks, recurrence."""

    weight: int
    """Blocks of the pool that hold one block of tokens of all of these layers."""
    most: int
    """Most blocks of tokens that a decoding sequence holds."""
    most_in_prefill: int
    """Most while a prompt is prefilled: the tokens of a step are all there at once."""


@dataclass(frozen=True, slots=True)
class BlockLayout:
    """Blocks of a sequence, closed forms of its tokens.

    One pool of equal blocks serves all groups, as in vLLM's hybrid KV cache manager. A block of
    tokens takes `full` blocks of the pool for the layers that keep all tokens, and for each limited
    group its weight, up to its limit.

    Notes
    -----
    A decoding sequence behind a window holds one block more or less as its tokens cross the borders
    of blocks; here it keeps the larger number: ``ceil((window - 1) / block_size) + 1``. A chunk is
    kept whole from its first to its last token, and the next one takes its place.
    """

    block_size: int
    """Tokens of a block."""
    full: int = 1
    """Blocks of the pool per block of tokens of the layers that keep all; 0 if there are none."""
    limited: tuple[LimitedGroup, ...] = ()
    """The others."""

    @property
    def reuses_prefixes(self) -> bool:
        """Whether sequences with a common prefix can share blocks.

        Some layers must keep all tokens, and none a state, which belongs to one sequence.
        """
        return self.full > 0 and all(group.most_in_prefill > 1 for group in self.limited)

    def blocks_for(self, num_tokens: int) -> int:
        """Blocks of a decoding sequence with `num_tokens` tokens in the cache."""
        blocks = -(-num_tokens // self.block_size)
        if not self.limited:
            return self.full * blocks
        held = self.full * blocks
        for weight, most, _ in self.limited:
            held += weight * (blocks if blocks < most else most)
        return held

    def prompt_blocks(self, num_tokens: int) -> int:
        """Blocks of a sequence while its `num_tokens` tokens are prefilled."""
        blocks = -(-num_tokens // self.block_size)
        if not self.limited:
            return self.full * blocks
        held = self.full * blocks
        for weight, _, most in self.limited:
            held += weight * (blocks if blocks < most else most)
        return held

    def tokens_in(self, num_blocks: int) -> int:
        """Longest sequence (tokens) that `num_blocks` blocks hold, prefilled and decoding."""
        if not self.limited:
            return num_blocks // self.full * self.block_size
        low, high = 0, 1
        while high < 1 << 40 and self.prompt_blocks(high * self.block_size) <= num_blocks:
            low, high = high, 2 * high
        while high - low > 1:
            middle = (low + high) // 2
            if self.prompt_blocks(middle * self.block_size) <= num_blocks:
                low = middle
            else:
                high = middle
        return low * self.block_size
