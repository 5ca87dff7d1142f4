"""Imports without garbage collection and without wandb."""

import gc
import os
import pty
import subprocess
import sys

from tests.conftest import ROOT
from tests.tools.builders import in_child
from utils.imports import STARTING, begin_imports, end_imports

WANDB = """
import sys
from utils.imports import begin_imports, end_imports

begin_imports()
try:
    import wandb
except ImportError:
    print("hidden")
end_imports()
print("wandb" in sys.modules)
"""


def test_collections_begin_again_and_skip_what_was_imported():
    def start():
        begin_imports()
        assert not gc.isenabled()
        end_imports()
        assert gc.isenabled() and gc.get_freeze_count() > 1000

    assert in_child(start) == (0, "")


def test_a_terminal_shows_that_the_program_starts_before_anything_slow_is_imported():
    """It is the first output, and gone once the imports are done."""
    begin = "begin_imports(show=True); assert 'torch' not in sys.modules; print('imports'); end_imports(show=True)"
    program = f"import sys; from utils.imports import begin_imports, end_imports; {begin}"
    ours, theirs = pty.openpty()
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, stdout=theirs, check=True)
    shown = os.read(ours, 1000).decode().replace("\r\n", "\n")
    assert shown == f"{STARTING}\rimports\n{' ' * len(STARTING)}\r"
    piped = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert piped.stdout == "imports\n"


def test_wandb_is_hidden_only_while_modules_are_imported():
    done = subprocess.run([sys.executable, "-c", WANDB], cwd=ROOT, capture_output=True, text=True)
    assert (done.stdout.split(), done.stderr) == (["hidden", "False"], "")


def test_a_package_that_is_loaded_already_stays(monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", gc)

    def start():
        begin_imports()
        end_imports()
        assert sys.modules["wandb"] is gc

    assert in_child(start) == (0, "")
