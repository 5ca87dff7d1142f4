"""Image sizes, batch sizes and processes in turn."""

import json

from scripts.benchmark import main
from scripts.benchmarks import scale


class Linear:
    """A contender whose time is linear in its pixels and its threads."""

    def __init__(self, name, setting):
        self._speed = 1e6 * setting.threads / setting.size**2

    def ask(self, task):
        return self._speed

    def close(self):
        pass


def test_sizes_batches_and_processes_are_compared(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(scale, "Contender", Linear)
    options = ["--sizes", "128", "64", "--batches", "2", "1", "--rounds", "3", "--threads", "2"]
    assert main(["scale", *options, "--json", str(tmp_path / "r.json")]) == 0
    rows = json.loads((tmp_path / "r.json").read_text())["rows"]
    assert {name: list(each) for name, each in rows.items()} == {
        "sizes": ["64", "128"],
        "batches": ["1", "2"],
        "processes": ["1", "2"],
    }
    out = capsys.readouterr().out
    assert "| image size | median | lowest to highest | to image size 64 |" in out
    assert "| 128 | 500.0 | 500.0 to 500.0 | 1.00 |" in out  # us per 1,000 pixels
    assert "| 1 | 488.3 | 488.3 to 488.3 | 1.00 |" in out and "| 2 | 488.3 |" in out  # two with a thread each
