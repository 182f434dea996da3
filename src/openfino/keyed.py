"""Random numbers that are keyed, not streamed (DESIGN decision 8).

Whatever a run draws, it draws from a generator made from a key such as (seed, epoch, row), never from a
stream that other draws have advanced. So a resumed run, a run with more workers and a run with more ranks
draw the same numbers.

Keys of one purpose are of one length: a key and the same key with zeros behind it draw the same numbers. Their parts
are below 2^32.
"""

from enum import IntEnum

import numpy as np


class Purpose(IntEnum):
    """The last part of a key: keeps draws for different purposes apart."""

    ORDER = 1
    CROPS = 2
    PHOTOMETRIC = 3
    MASK_PLAN = 4
    MASK = 5
    MODEL = 6
    DROPOUT = 7
    DIRECTIONS = 8
    INIT = 9
    SAMPLE = 10
    PROBE = 11
    REPLACEMENT = 12
    PROCEDURAL = 13
    AUDIT = 14


def keyed_generator(*key: int) -> np.random.Generator:
    """A NumPy generator that depends on ``key`` alone.

    Raises:
        ValueError: if a part of the key is negative.
    """
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(key)))


def keyed_seed(*key: int) -> int:
    """A 63-bit integer seed that depends on ``key`` alone, for ``torch.Generator.manual_seed``."""
    state = np.random.SeedSequence(key).generate_state(1, np.uint64)
    return int(state[0] >> np.uint64(1))
