"""The quickstart: a small Swin learns to read real digits."""

import pytest

from tests.conftest import ROOT, accuracy, run_program


@pytest.mark.slow
def test_the_quickstart_reads_97_percent_of_the_held_out_digits(tmp_path):
    cfg = ROOT / "configs/quickstart.yaml"
    arguments = ("--cfg", cfg, "--output", tmp_path, "--data-path", tmp_path / "digits")
    done = run_program(*arguments, processes=2, fresh=True)
    assert done.code == 0, done.err
    best = tmp_path / "quickstart/default/checkpoints/best.pth"
    arguments = ["--cfg", cfg, "--data-path", tmp_path / "digits", "--eval", "--resume", best]
    correct, count = accuracy(run_program(*arguments, processes=2).out)
    assert count == 360 and correct >= 351
