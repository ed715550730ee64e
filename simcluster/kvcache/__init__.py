"""The KV cache of an instance: a pool of equal blocks, counted, and reuse of common prefixes.

======  =====================================================
module  idea
======  =====================================================
layout  how many blocks a sequence holds, by groups of layers
pool    equal blocks, counted in integers
prefix  the same pool, with blocks that common prefixes share
======  =====================================================
"""

from simcluster.kvcache.layout import BlockLayout, LimitedGroup
from simcluster.kvcache.pool import BlockPool
from simcluster.kvcache.prefix import PrefixPool

__all__ = ["BlockLayout", "BlockPool", "LimitedGroup", "PrefixPool"]
