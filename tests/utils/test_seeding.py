"""Seeds are functions of their address."""

import random

import numpy as np
import torch

from utils.seeding import derive, seed_all


def draw(*address):
    seed_all(*address)
    return random.random(), np.random.rand(), torch.rand(1).item()


def test_one_address_gives_one_stream_in_all_three_generators():
    assert draw("sample", 0, 3, 7) == draw("sample", 0, 3, 7)
    other = draw("sample", 0, 7, 3)
    assert all(a != b for a, b in zip(draw("sample", 0, 3, 7), other, strict=True))


def test_addresses_do_not_collide():
    seeds = {derive(p, 0, a, b) for p in ("sample", "step") for a in range(40) for b in range(40)}
    seeds |= {derive("step", 1, 11, 1), derive("step", 11, 1, 1), derive("step", 1, 1, 11)}
    assert len(seeds) == 2 * 1600 + 3
    assert derive("order", 0) == derive("order", 0) < 2**64
