"""Seeds are functions of their address."""

import random

import numpy as np
import torch

from utils.seeding import derive_seed, seed_all, seed_cpu


def draw(*address):
    seed_all(*address)
    return random.random(), np.random.rand(), torch.rand(1).item()


def test_one_address_gives_one_stream_in_all_three_generators():
    assert draw("sample", 0, 3, 7) == draw("sample", 0, 3, 7)
    other = draw("sample", 0, 7, 3)
    assert all(a != b for a, b in zip(draw("sample", 0, 3, 7), other, strict=True))


def test_the_cpu_alone_gets_the_same_stream():
    seed_all("x", 1)
    expected = random.random(), np.random.rand(), torch.rand(1).item()
    seed_cpu("x", 1)
    assert (random.random(), np.random.rand(), torch.rand(1).item()) == expected


def test_addresses_do_not_collide():
    seeds = {derive_seed(p, 0, a, b) for p in ("sample", "step") for a in range(40) for b in range(40)}
    seeds |= {derive_seed("step", 1, 11, 1), derive_seed("step", 11, 1, 1), derive_seed("step", 1, 1, 11)}
    assert len(seeds) == 2 * 1600 + 3
    assert derive_seed("order", 0) == derive_seed("order", 0) < 2**64
