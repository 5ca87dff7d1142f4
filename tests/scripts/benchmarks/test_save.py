"""The pause for a checkpoint."""

import json

from scripts.benchmark import main


def test_the_pause_for_a_checkpoint_is_measured(tiny_yaml, tmp_path, capsys):
    options = ["--cfg", str(tiny_yaml), "--folder", str(tmp_path), "--rounds", "2", "--json", str(tmp_path / "r.json")]
    assert main(["save", *options]) == 0
    result = json.loads((tmp_path / "r.json").read_text())
    assert set(result["rows"]) == {"training waits, s", "until it is on disk, s"}
    assert 0 < result["rows"]["training waits, s"]["median"] <= result["rows"]["until it is on disk, s"]["most"]
    assert "s per 100 MB" in capsys.readouterr().out
