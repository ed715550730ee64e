"""The block pool against a bag of numbered blocks."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simcluster.errors import InvariantError
from simcluster.kvcache import BlockPool
from simcluster.testing.examples import examples


class NumberedBlocks:
    """The slow way: every block has a number and is on one of two lists."""

    def __init__(self, num_blocks: int) -> None:
        self.free = list(range(num_blocks))
        self.used: list[int] = []
        self.peak = 0

    def take(self, count: int) -> None:
        """Move `count` blocks to the used ones."""
        for _ in range(count):
            self.used.append(self.free.pop())
        self.peak = max(self.peak, len(self.used))

    def give(self, count: int) -> None:
        """Move `count` blocks back."""
        for _ in range(count):
            self.free.append(self.used.pop())


@examples(200)
@given(
    num_blocks=st.integers(1, 50),
    changes=st.lists(st.integers(-20, 20), max_size=40),
)
def test_free_used_and_peak_are_those_of_numbered_blocks(
    num_blocks: int, changes: list[int]
) -> None:
    """Free and used add up to the pool after every change, and the peak is remembered."""
    pool, blocks = BlockPool(num_blocks, 16), NumberedBlocks(num_blocks)
    for change in changes:
        if change > 0:
            count = min(change, len(blocks.free))
            pool.allocate(count)
            blocks.take(count)
        else:
            count = min(-change, len(blocks.used))
            pool.release(count)
            blocks.give(count)
        assert pool.free_blocks == len(blocks.free)
        assert pool.used_blocks == len(blocks.used)
        assert pool.peak_used == blocks.peak
        assert pool.usage == pytest.approx(len(blocks.used) / num_blocks, abs=1e-12)


@given(num_tokens=st.integers(0, 1000), block_size=st.integers(1, 64))
def test_a_sequence_takes_the_fewest_blocks_that_hold_it(num_tokens: int, block_size: int) -> None:
    """Enough room, and with one block less not enough."""
    count = BlockPool(1, block_size).blocks_for(num_tokens)
    assert count * block_size >= num_tokens
    assert count == 0 or (count - 1) * block_size < num_tokens


@given(
    num_blocks=st.integers(1, 300),
    used=st.integers(0, 300),
    wanted=st.integers(1, 320),
    percent=st.sampled_from([0, 1, 5, 20]),
)
def test_admission_leaves_the_watermark_free(
    num_blocks: int, used: int, wanted: int, percent: int
) -> None:
    """Whoever comes in leaves the watermark free; alone, whatever fits may come."""
    pool = BlockPool(num_blocks, 16, percent / 100)
    used = min(used, num_blocks)
    pool.allocate(used)
    left = num_blocks - used - wanted
    kept = num_blocks * percent // 100
    assert pool.can_admit(wanted) == (left >= 0 if used == 0 else left >= kept)


def test_admission_at_the_edge() -> None:
    """100 blocks, 1 % watermark: with one taken 98 more may come, not 99."""
    pool = BlockPool(100, 16, 0.01)
    assert pool.can_admit(100)
    pool.allocate(1)
    assert pool.can_admit(98)
    assert not pool.can_admit(99)


def test_taking_too_much_or_giving_back_twice_is_a_bug() -> None:
    """Both stop the run: whoever takes must have asked."""
    pool = BlockPool(4, 16)
    pool.allocate(3)
    with pytest.raises(InvariantError):
        pool.allocate(2)
    pool = BlockPool(4, 16)
    pool.allocate(1)
    pool.release(1)
    with pytest.raises(InvariantError):
        pool.release(1)
