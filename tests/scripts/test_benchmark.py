"""The benchmark runs and reports what it measured; no test asserts a speed."""

import json

import pytest

from scripts.benchmark import Row, main, measure, table


def test_training_input_is_measured_beside_the_peers(tmp_path, capsys):
    options = ["--images", "16", "--rounds", "1", "--workers", "0", "--size", "32", "--batch-size", "8"]
    assert main(["data", *options, "--json", str(tmp_path / "r.json")]) == 0
    result = json.loads((tmp_path / "r.json").read_text())
    assert [row["name"] for row in result["rows"]] == ["this program", "timm", "torchvision"]
    assert all(row["median"] > 0 and row["rounds"] == 1 for row in result["rows"])
    assert "16 files of" in result["setting"] and {"processor", "cores", "versions"} <= result.keys()
    out = capsys.readouterr().out
    assert "| this program |" in out and out.count("(warm-up)") == 3


def test_ratios_are_to_the_faster_peer_of_the_same_round(monkeypatch):
    """Round 1: 100 to 50 and 25 images/s; round 2: 90 to 30 and 60."""
    seconds = iter([1, 1, 1, 1, 2, 4, 1 / 0.9, 1 / 0.3, 1 / 0.6])
    clock = [0.0]
    monkeypatch.setattr("scripts.benchmark.time.perf_counter", lambda: clock[0])

    def work():
        clock[0] += next(seconds)
        return 100

    ours, one, other = measure({"ours": work, "one": work, "other": work}, rounds=2)
    assert (ours.slowest, ours.fastest, ours.rounds) == (pytest.approx(90), pytest.approx(100), 2)
    assert (ours.lowest_ratio, ours.highest_ratio) == (pytest.approx(1.5), pytest.approx(2.0))
    assert one.highest_ratio == pytest.approx(1.0) and other.lowest_ratio == pytest.approx(0.5)


def test_a_row_of_the_table():
    row = Row("a", 1.0, 0.5, 2.0, 3, 1.5, 1.25, 1.75)
    assert table([row]).splitlines()[-1] == "| a | 1.0 | 0.5 to 2.0 | 1.50 | 1.25 to 1.75 |"


@pytest.mark.parametrize("arguments", [["--rounds", "0"], ["--images", "7", "--batch-size", "8"], ["--odd"]])
def test_impossible_arguments_are_refused(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        main(["data", *arguments])
    assert caught.value.code == 2 and "error:" in capsys.readouterr().err
