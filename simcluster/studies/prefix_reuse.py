"""How much of a workload's prompts a cache of prefixes would hold, without simulating anything."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from simcluster.errors import ConfigError
from simcluster.kvcache.prefix import PrefixPool
from simcluster.request import Request
from simcluster.workload.base import Workload


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefixReuse:
    """What was found in the cache."""

    num_blocks: int
    found_blocks: int
    """Blocks of the prompts, and those of them that were found."""
    num_tokens: int
    found_tokens: int
    """The same in tokens."""

    @property
    def block_share(self) -> float:
        """Share of the blocks that were found, 0 to 1."""
        return self.found_blocks / max(self.num_blocks, 1)

    @property
    def token_share(self) -> float:
        """Share of the tokens that were found, 0 to 1."""
        return self.found_tokens / max(self.num_tokens, 1)


def replay(
    workload: Workload,
    *,
    block_size: int,
    num_blocks: int | None = None,
    partial_blocks: bool = False,
) -> PrefixReuse:
    """Send the requests of `workload` through one cache, one after the other.

    Each finds what the earlier ones left, computes the rest and leaves at once: the most that one
    cache of this size can give, all instances together.

    Parameters
    ----------
    workload : Workload
        The requests, with block ids; rejected ones are left out.
    block_size : int
        Tokens of a block.
    num_blocks : int, optional
        Blocks of the cache; without end by default.
    partial_blocks : bool
        Also count the last block of a prompt if it is not full or holds its last token, as
        statistics of published traces do. An engine shares full blocks and computes the last token.

    Returns
    -------
    PrefixReuse
        How many blocks and tokens were found. With more blocks never fewer: the cache holds what
        every smaller one holds (Mattis et al. 1970, stack algorithms).

    Raises
    ------
    ConfigError
        If the workload has no block ids, `block_size` does not fit them, or a prompt with its
        answer is larger than the cache.
    """
    hashes = workload.hashes
    if hashes is None:
        raise ConfigError(
            "workload", None, "its requests have no block ids", "Use a trace with hash ids."
        )
    hashes.check_block_size(block_size)
    # The KV of the last token is never computed.
    needed = -(-(workload.prompt_len + workload.output_len - 1) // block_size)
    longest = int(needed[~workload.rejected].max(initial=0))
    if num_blocks is not None and num_blocks < longest:
        raise ConfigError(
            "num_blocks",
            num_blocks,
            f"the longest request takes {longest} blocks of {block_size} tokens",
            f"Use at least {longest}.",
        )
    pool = PrefixPool(int(needed.sum()) if num_blocks is None else num_blocks, block_size)
    asked = found = found_tokens = 0
    served = np.flatnonzero(~workload.rejected)
    for number in served.tolist():
        prompt_len, output_len = int(workload.prompt_len[number]), int(workload.output_len[number])
        request = Request(number, 0.0, prompt_len, output_len)
        request.block_ids = hashes.runs(number, block_size, partial=partial_blocks)
        in_prompt = prompt_len // block_size
        last = prompt_len
        if partial_blocks:
            in_prompt = -(-prompt_len // block_size)
            last = in_prompt * block_size + 1
        num_found, _ = pool.find(request, last)
        # The prompt first: a second copy of its last block is given back before the answer grows.
        request.num_computed_tokens = prompt_len
        for_prompt = pool.blocks_for(prompt_len)
        pool.take(request, for_prompt, num_found)
        pool.computed(request)
        request.num_computed_tokens = prompt_len + output_len - 1
        blocks = pool.blocks_for(request.num_computed_tokens)
        pool.allocate(blocks - for_prompt)
        if partial_blocks:
            request.num_computed_tokens = blocks * block_size
        pool.leave(request, blocks)
        asked += in_prompt
        found += num_found
        found_tokens += min(num_found * block_size, prompt_len)
    return PrefixReuse(
        num_blocks=asked,
        found_blocks=found,
        num_tokens=int(workload.prompt_len[served].sum()),
        found_tokens=found_tokens,
    )
