"""What the shell is offered."""

import os
import subprocess
import sys
from argparse import Namespace

import pytest

from configs.completion import keys, recipes
from configs.schema import KEYS
from tests.conftest import ROOT


def offered(line, tmp_path):
    """Asks main.py as the shell does; returns what may follow `line`."""
    asking = {"_ARGCOMPLETE": "2", "_ARGCOMPLETE_IFS": "\n", "_ARGCOMPLETE_STDOUT_FILENAME": str(tmp_path / "answer")}
    own = {**os.environ, **asking, "COMP_LINE": line, "COMP_POINT": str(len(line)), "COMP_TYPE": "9"}
    done = subprocess.run([sys.executable, ROOT / "main.py"], env=own, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [each.strip() for each in (tmp_path / "answer").read_text().splitlines()]


def test_the_shell_is_offered_recipes_options_and_keys(tmp_path):
    assert offered("python main.py --cfg swin_b", tmp_path)[:1] == ["swin_base"]
    assert offered("python main.py --cfg swin_tiny --dry", tmp_path) == ["--dry-run"]
    assert "TRAIN.BASE_LR" in offered("python main.py --cfg swin_tiny --opts TRAIN.B", tmp_path)


@pytest.mark.parametrize(
    ("given", "values"),
    [
        (["AMP_ENABLE"], ["True", "False"]),
        (["TRAIN.EPOCHS", "3", "TRAIN.LR_SCHEDULER.NAME"], ["cosine", "linear", "step", "multistep"]),
        (["TRAIN.EPOCHS"], ["300"]),
        (["TRAIN.NO_KEY"], []),
    ],
)
def test_a_key_is_followed_by_its_values(given, values):
    assert keys("", Namespace(opts=given)) == values


def test_keys_are_offered_where_one_is_due():
    every = keys("TR", Namespace(opts=["TRAIN.EPOCHS", "3", "TR"]))
    assert every == [name for name, key in KEYS.items() if not key.deprecated] == keys("", Namespace(opts=None))


def test_a_path_is_completed_as_one(tmp_path):
    (tmp_path / "mine.yaml").touch()
    assert f"{tmp_path}/mine.yaml" in recipes(f"{tmp_path}/")
    assert "swin_tiny" in recipes("")
