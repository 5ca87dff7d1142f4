"""Models compared with peers."""

import json
from argparse import ArgumentParser
from types import SimpleNamespace

import pytest

from scripts.benchmark import main
from scripts.benchmarks import model


def test_a_peer_that_is_not_installed_is_named(monkeypatch, capsys):
    monkeypatch.setattr(model, "Contender", lambda name, setting: SimpleNamespace(exists=name != "timm"))
    parser = ArgumentParser()
    model.add_arguments(parser)
    assert list(model._start("swin_tiny", parser.parse_args(["--peers", "timm", "torchvision"]))) == [
        "this program",
        "torchvision",
    ]
    assert capsys.readouterr().out == "skipped, not installed: timm\n"


@pytest.mark.seconds
def test_models_are_compared_with_peers(tmp_path, capsys):
    """Each in a separate process."""
    options = ["--rounds", "1", "--warm-up", "0", "--batch-size", "1", "--dtypes", "fp32", "--threads", "1"]
    assert main(["model", *options, "--json", str(tmp_path / "r.json")]) == 0
    result = json.loads((tmp_path / "r.json").read_text())
    titles = ["training step, fp32", "evaluation, fp32", "peak memory of a training step, fp32, MiB"]
    assert list(result["rows"]) == [f"swin_tiny, {title}" for title in titles]
    names = ["this program", "timm", "torchvision", "transformers"]
    assert [row["name"] for row in result["rows"]["swin_tiny, evaluation, fp32"]] == names
    assert set(result["rows"]["swin_tiny, peak memory of a training step, fp32, MiB"]) == set(names)
    assert "peers with default settings" in result["setting"] and capsys.readouterr().out.count("| this program |") == 3
