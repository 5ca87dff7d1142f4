"""Process settings: they are applied, and leave other devices alone."""

import subprocess
import sys

import torch

from tests.conftest import ROOT
from utils.runtime import processor_name, tune_process

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


def test_accelerators_are_left_alone():
    torch.set_flush_denormal(False)
    tune_process(torch.device("cuda"))
    assert (torch.tensor([1e-38]) * 0.01).item() > 0


def test_processors_of_one_name_differ_by_their_instructions(monkeypatch):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": False, "avx512_bf16": True}, raising=False)
    assert processor_name().endswith(" (AVX512, bfloat16)")
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": True, "avx512_bf16": True})
    assert processor_name().endswith(" (AVX512, AMX, bfloat16)")
    monkeypatch.delattr(torch.cpu, "get_capabilities")
    assert processor_name().endswith(" (AVX512)")
