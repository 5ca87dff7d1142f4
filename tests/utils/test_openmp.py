"""How threads wait is settled before torch is imported."""

import os
import subprocess
import sys

import pytest

from tests.conftest import ROOT

SCRIPT = """
import os, runpy, sys

class AtTorch:
    @staticmethod
    def find_spec(name, *rest):
        if name == "torch":
            print(os.environ.get("GOMP_SPINCOUNT"), flush=True)
            os._exit(0)

sys.meta_path.insert(0, AtTorch)
sys.argv = ["main.py", "--cfg", "quickstart", "--throughput"]
runpy.run_path("main.py", run_name="__main__")
"""


@pytest.mark.parametrize(
    ("own", "expected"),
    [({}, "1000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "active"}, "None")],
)
def test_main_sets_it_before_torch_reads_it(own, expected):
    environment = {
        name: value for name, value in os.environ.items() if name not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
    }
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], cwd=ROOT, env={**environment, **own}, capture_output=True, text=True
    )
    assert done.stdout.strip() == expected, done.stderr
