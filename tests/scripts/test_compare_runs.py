"""Runs side by side."""

from PIL import Image

from scripts.compare_runs import main
from tests.scripts.test_run_folder import write


def test_results_differences_and_curves(tmp_path, capsys):
    runs = [write(tmp_path / "tiny/a", 0.1, 50.0), write(tmp_path / "tiny/b", 0.2, 60.0)]
    assert main([*runs, "--picture", str(tmp_path / "new/curves.png")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == "run epochs best top1 of epoch min val loss last train loss".split()
    assert lines[1].split() == ["tiny/a", "2", "50.00", "1", "1.25", "2.25"]
    assert lines[2].split() == ["tiny/b", "2", "60.00", "1", "1.25", "2.25"]
    assert [line.split() for line in lines[4:6]] == [["key", "tiny/a", "tiny/b"], ["TRAIN.BASE_LR", "0.1", "0.2"]]
    with Image.open(tmp_path / "new/curves.png") as picture:
        assert picture.width > 1000 and len(picture.convert("L").getcolors()) > 10


def test_a_run_that_has_just_begun(tmp_path, capsys):
    run = write(tmp_path / "tiny/a", 0.1, 50.0)
    (tmp_path / "tiny/a/metrics.jsonl").write_text("")
    assert main([run, "--picture", str(tmp_path / "curves.png")]) == 0
    assert "nan" in capsys.readouterr().out


def test_what_is_no_run_is_refused(tmp_path, capsys):
    assert main([str(tmp_path)]) == 3
    assert "not the folder of a run (No such file or directory)" in capsys.readouterr().err
