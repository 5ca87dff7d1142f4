"""Costs against figures counted by hand."""

import torch
from torch import nn

from utils.precision import choose_precision
from utils.profiling import count_flops, count_parameters, describe_model, measure_throughput, peak_memory

CPU = torch.device("cpu")


def network():
    return nn.Sequential(nn.Conv2d(3, 8, 4, stride=4), nn.Flatten(), nn.Linear(8 * 4 * 4, 10))


def test_parameters_and_multiply_adds():
    assert count_parameters(network()) == (3 * 16 + 1) * 8 + (128 + 1) * 10
    assert count_flops(network(), (16, 16)) == 16 * 8 * 48 + 128 * 10
    assert describe_model(network(), (16, 16)) == "Sequential: 1,682 parameters, 0.00 GFLOPs at 16x16"


def test_throughput_is_a_median_between_its_extremes():
    result = measure_throughput(network(), 4, (16, 16), choose_precision(CPU, False, "auto"), seconds=0.1)
    assert 0 < result.slowest <= result.median <= result.fastest and result.rounds >= 3
    assert "batch 4 at 16x16, float32, peak memory" in result.line()
    assert peak_memory(CPU) > 50
