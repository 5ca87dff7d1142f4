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
sys.argv[0] = "main.py"
runpy.run_path("main.py", run_name="__main__")
"""


WORKERS, NONE = ["--cfg", "swin_tiny", "--data-path", "x"], ["--cfg", "quickstart"]


@pytest.mark.parametrize(
    ("arguments", "own", "expected"),
    [
        (WORKERS, {}, "1000"),
        (WORKERS, {"GOMP_SPINCOUNT": "7"}, "7"),
        (WORKERS, {"OMP_WAIT_POLICY": "active"}, "None"),
        ([*WORKERS, "--throughput"], {}, "None"),  # nothing is loaded
        (NONE, {}, "None"),
        (NONE, {"LOCAL_WORLD_SIZE": "2"}, "1000"),
        (["--eval", "--resume", "a.pth"], {}, "1000"),  # the recipe is in the weights
    ],
)
def test_main_sets_it_before_torch_reads_it_if_other_processes_share_the_cores(arguments, own, expected):
    left_out = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "LOCAL_WORLD_SIZE")
    environment = {name: value for name, value in os.environ.items() if name not in left_out}
    line = [sys.executable, "-c", SCRIPT, *arguments]
    done = subprocess.run(line, cwd=ROOT, env={**environment, **own}, capture_output=True, text=True)
    assert done.stdout.strip() == expected, done.stderr
