"""The KV cache of an instance: a pool of equal blocks, counted, and reuse of common prefixes."""

from simcluster.kvcache.pool import BlockPool
from simcluster.kvcache.prefix import PrefixPool
from simcluster.kvcache.replay import PrefixReuse, replay

__all__ = ["BlockPool", "PrefixPool", "PrefixReuse", "replay"]
