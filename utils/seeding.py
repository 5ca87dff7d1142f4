"""Randomness derived from counters, never stored.

Every random decision has an address: what it is for, the run's seed, and counters such as epoch and sample number. So
nothing depends on the number of loader workers, on prefetching, or on where a run was interrupted.
"""

import random
from hashlib import blake2b

import numpy as np
import torch


def derive(purpose: str, *counters: int) -> int:
    """A 64-bit seed for one address; different addresses give unrelated seeds."""
    text = ":".join([purpose, *map(str, counters)])
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "little")


def seed_all(purpose: str, *counters: int) -> None:
    """Set the global generators of python, numpy and torch (all devices) to one address."""
    seed_host(purpose, *counters)
    torch.manual_seed(derive(purpose, *counters))


def seed_host(purpose: str, *counters: int) -> None:
    """As `seed_all`, but without GPUs: a tenth of the time, which counts where every sample is seeded."""
    seed = derive(purpose, *counters)
    random.seed(seed)
    np.random.seed([seed & 0xFFFFFFFF, seed >> 32])
    torch.default_generator.manual_seed(seed)
