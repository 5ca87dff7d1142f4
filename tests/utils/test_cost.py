"""Costs against figures counted by hand."""

import numpy as np
import pytest
import torch
from torch import nn

from tests.tools.builders import small
from utils.cost import (
    count_flops,
    count_parameters,
    describe_model,
    explain_memory,
)
from utils.errors import ConfigError, ResourceError

CPU = torch.device("cpu")


def network():
    return nn.Sequential(nn.Conv2d(3, 8, 4, stride=4), nn.Flatten(), nn.Linear(8 * 4 * 4, 10))


def test_parameters_and_multiply_adds():
    assert count_parameters(network()) == (3 * 16 + 1) * 8 + (128 + 1) * 10
    assert count_flops(network(), (16, 16)) == 16 * 8 * 48 + 128 * 10
    assert describe_model(network(), (16, 16)) == "Sequential: 1,682 parameters, 0.00 GFLOPs at 16x16"
    assert describe_model(small(), (30, 32)).endswith(" at 30x32, maps 8x15x16 16x8x8")


def raised(call):
    try:
        call()
    except (RuntimeError, MemoryError) as e:
        return e
    raise AssertionError("it succeeded")


def test_fault_58_a_real_lack_of_memory_names_the_peak_and_the_settings_to_change():
    error = explain_memory(raised(lambda: torch.empty(1 << 60)), CPU)
    assert isinstance(error, ResourceError) and error.exit_code == 7
    assert error.subject == "--batch-size" and f" {4 << 60} bytes" in error.problem and " MiB" in error.problem
    assert all(remedy in error.remedy for remedy in ("--accumulation-steps", "--use-checkpoint", "TEST.IMG_SIZE"))


def test_fault_58_numpy_and_python_run_out_of_memory_too():
    for call in (lambda: np.empty(1 << 60, np.uint8), lambda: bytearray(1 << 62)):
        error = explain_memory(raised(call), CPU)
        assert isinstance(error, ResourceError) and error.problem.startswith("the machine ")


@pytest.mark.parametrize(
    ("error", "amount"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has ..."), "2.50 GiB"),
        (RuntimeError("MPS backend out of memory (MPS allocated: 1 GB). Tried to allocate 256 bytes"), "256 bytes"),
    ],
)
def test_fault_58_the_device_that_is_out_of_memory_is_named(error, amount):
    # the names of devices that are not here; their peak is that of this process
    problem = explain_memory(error, CPU).problem
    assert problem.startswith("cpu ") and amount in problem


def test_other_errors_are_passed_on():
    for error in (RuntimeError("shapes differ"), ConfigError("a", "x"), KeyboardInterrupt()):
        assert explain_memory(error, CPU) is error
