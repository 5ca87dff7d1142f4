"""Training input compared with peers."""

import json

from scripts.benchmark import main


def test_training_input_is_compared_with_peers(tmp_path, capsys):
    options = ["--images", "16", "--rounds", "1", "--workers", "0", "--size", "32", "--batch-size", "8"]
    assert main(["data", *options, "--json", str(tmp_path / "r.json")]) == 0
    result = json.loads((tmp_path / "r.json").read_text())
    assert [row["name"] for row in result["rows"]] == ["this program", "timm", "torchvision"]
    assert all(row["median"] > 0 and row["rounds"] == 1 for row in result["rows"])
    assert "16 files of" in result["setting"] and {"processor", "cores", "versions"} <= result.keys()
    out = capsys.readouterr().out
    assert "| this program |" in out and out.count("warm-up") == 3
