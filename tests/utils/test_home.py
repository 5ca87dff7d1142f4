"""A user without a home folder, as in a container that runs as an arbitrary user."""

import getpass
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.tools.builders import in_child
from utils.home import ensure_home

STRANGER = 54_321  # a user that no system knows


def test_a_home_folder_is_left_alone(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    ensure_home()
    assert os.environ["HOME"] == str(tmp_path)


@pytest.fixture
def temporary(monkeypatch):
    """A temporary folder that everybody may use."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o777)
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    yield folder
    shutil.rmtree(folder)


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
def test_fault_66_a_user_without_a_home_folder_gets_a_temporary_one_with_one_warning(temporary):
    def start():
        for name in ("HOME", "USER", "LOGNAME", "LNAME", "USERNAME"):
            os.environ.pop(name, None)
        os.setuid(STRANGER)
        ensure_home()
        ensure_home()
        (Path.home() / ".cache").mkdir()
        assert Path.home().parent == temporary
        assert Path.home().stat().st_mode & 0o777 == 0o700 and getpass.getuser()

    code, err = in_child(start)
    assert code == 0 and err.count("\n") == 1 and str(temporary) in err, err


NOBODY = """
import os, pwd, runpy, sys

def unknown(_):
    raise KeyError("uid not found")

pwd.getpwuid = unknown
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.parametrize("program", ["main.py --print-config --cfg swin_tiny", "scripts/predict.py --help"])
def test_fault_66_the_programs_start_without_a_home_folder(program):
    own = {name: each for name, each in os.environ.items() if name not in ("HOME", "USER", "LOGNAME")}
    run = [sys.executable, "-c", NOBODY, *program.split()]
    done = subprocess.run(run, cwd=ROOT, env={**own, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout and "HOME is not set" in done.stdout + done.stderr, done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
def test_a_folder_of_another_user_is_not_taken_for_a_home(temporary):
    theirs = temporary / f"home-{STRANGER}"
    theirs.mkdir()

    def start():
        os.environ.pop("HOME", None)
        os.setuid(STRANGER)
        ensure_home(warn=False)
        assert Path.home() != theirs and Path.home().is_dir()

    assert in_child(start) == (0, "")
