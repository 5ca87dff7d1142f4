"""Image sizes in turn."""

import json

from scripts.benchmark import main


def test_sizes_are_compared_with_the_smallest(tmp_path, capsys):
    options = ["--sizes", "64", "128", "--rounds", "1", "--threads", "1", "--json", str(tmp_path / "r.json")]
    assert main(["scale", *options]) == 0
    rows = json.loads((tmp_path / "r.json").read_text())["rows"]
    assert list(rows) == ["64", "128"] and all(len(times) == 1 and times[0] > 0 for times in rows.values())
    out = capsys.readouterr().out
    assert "| 64 | 4 |" in out and "| 128 | 1 |" in out
