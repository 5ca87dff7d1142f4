"""Process settings: they are applied, and leave other devices alone."""

import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from tests.conftest import ROOT
from utils import runtime

SCRIPT = """
import resource, torch
from utils.runtime import tune_process
tune_process(torch.device("cpu"))
for _ in range(40):
    torch.ones(2 ** 24)  # 64 MiB
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    torch.ones(2 ** 24)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
tiny = torch.tensor([1e-38, 1.0]) * 0.01
torch.set_num_threads(2)
rows = torch.full((2 ** 20,), 1e-38) * 0.01  # by several threads
print(tiny[0].item(), rows.count_nonzero().item())
"""


def test_memory_is_kept_and_denormals_are_zero_on_every_thread():
    result = subprocess.run([sys.executable, "-c", SCRIPT], cwd=ROOT, capture_output=True, text=True, check=True)
    faults, values = result.stdout.splitlines()
    assert int(faults) < 10 * 16384 / 2  # 16,384 pages each time without
    assert values == "0.0 0"


def test_accelerators_are_left_alone(monkeypatch):
    monkeypatch.setattr(torch, "set_flush_denormal", lambda on: pytest_fail())
    runtime.tune_process(torch.device("cuda"))


@pytest.mark.skipif(sys.platform != "linux", reason="mallopt is glibc's")
def test_older_versions_of_the_c_library_take_a_smaller_threshold(monkeypatch):
    """They refuse a gibibyte; if they refuse that too, nothing else is set."""
    for accepted, calls in ((2**25, [(-3, 2**30), (-3, 2**25), (-1, -1)]), (0, [(-3, 2**30), (-3, 2**25)])):
        made = []

        def mallopt(name, value, made=made, accepted=accepted):
            made.append((name, value))
            return int(name == -1 or value <= accepted)

        monkeypatch.setattr(runtime.ctypes, "CDLL", lambda name, mallopt=mallopt: SimpleNamespace(mallopt=mallopt))
        runtime.tune_process(torch.device("cpu"))
        assert made == calls


def pytest_fail():
    raise AssertionError("changed")
