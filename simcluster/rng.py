"""Named random streams: a stream depends on the run's seed and its own name, nothing else."""

from __future__ import annotations

import zlib

import numpy as np


def stream(seed: int, *name: str) -> np.random.Generator:
    """Return the random stream `name` of the run `seed`.

    Adding a stream elsewhere does not shift this one, and the same name gives the same numbers in
    every interpreter (``hash()`` would not).

    Parameters
    ----------
    seed : int
        Seed of the run, >= 0.
    *name : str
        Path of the stream, such as ``"arrivals"`` or ``"faults", "instance-3"``.
    """
    words = tuple(zlib.crc32(part.encode()) for part in name)
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=words))
