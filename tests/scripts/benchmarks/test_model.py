"""Models compared with peers."""

import json
import math
from argparse import ArgumentParser
from types import SimpleNamespace

import pytest

from scripts.benchmark import main
from scripts.benchmarks import model


def options_of(*arguments):
    parser = ArgumentParser()
    model.add_arguments(parser)
    parser.add_argument("--json")
    return parser.parse_args(arguments)


def test_a_peer_that_is_not_installed_is_named(monkeypatch, capsys):
    monkeypatch.setattr(model, "Contender", lambda name, setting: SimpleNamespace(exists=name != "timm"))
    assert list(model._start("swin_tiny", options_of("--peers", "timm", "torchvision"))) == [
        "this program",
        "torchvision",
        "matrix products alone",
    ]
    assert capsys.readouterr().out == "skipped, not installed: timm\n"


@pytest.mark.parametrize(("speed", "measured"), [(1 / 32, ["fp32"]), (3.0, ["fp32", "bf16"])])
def test_a_dtype_that_is_slower_is_left_out_unless_it_is_named(monkeypatch, capsys, speed, measured):
    monkeypatch.setattr(model, "relative_speed", lambda dtype: speed)
    monkeypatch.setattr(model, "_contenders", lambda options: [("swin_tiny", {})])
    monkeypatch.setattr(model, "_measure", lambda contenders, options, limit: {each: [] for each in options.dtypes})
    assert list(model.run(options_of())["rows"]) == [f"swin_tiny, {each}" for each in measured]
    assert ("skipped: bf16" in capsys.readouterr().out) == (speed < 1)
    assert list(model.run(options_of("--dtypes", "bf16"))["rows"]) == ["swin_tiny, bf16"]


def test_quick_divides_three_minutes_among_the_measurements(monkeypatch):
    """Time that one did not need is left to the others; each still does a round, however long it takes."""
    now, given = [0.0], []
    monkeypatch.setattr(model.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(model, "_contenders", lambda options: [("swin_tiny", {}), ("swin_small", {})])

    def take_turns(calls, rounds, warm_up, parts=1, seconds=math.inf):
        given.append(seconds)
        now[0] += 200 if len(given) == 3 else 20
        return {"this program": [1.0]}

    monkeypatch.setattr(model, "take_turns", take_turns)
    monkeypatch.setattr(model, "_memory", lambda values: "")
    quick = options_of("--quick", "--dtypes", "fp32", "--models", "swin_tiny", "swin_small")
    setting = model.run(quick)["setting"]
    assert given == [165 / 4, 145 / 3, 125 / 2, 0]
    assert setting.endswith("n = 3 after 2 steps of warm-up, limited to about 3 minutes")
    assert str(quick.json) == "output/benchmark.json" and options_of("--quick", "--json", "x").json == "x"
    assert options_of("--json", "x", "--quick").json == "x"


@pytest.mark.seconds
def test_models_are_compared_with_peers(tmp_path, capsys):
    """Each in a separate process."""
    options = ["--rounds", "1", "--warm-up", "0", "--batch-size", "1", "--dtypes", "fp32", "--threads", "1"]
    assert main(["model", *options, "--json", str(tmp_path / "r.json")]) == 0
    result = json.loads((tmp_path / "r.json").read_text())
    titles = ["training step, fp32", "evaluation, fp32", "peak memory of a training step, fp32, MiB"]
    assert list(result["rows"]) == [f"swin_tiny, {title}" for title in titles]
    names = ["this program", "timm", "torchvision", "transformers"]
    for title in titles[:2]:
        rows = result["rows"][f"swin_tiny, {title}"]
        assert [row["name"] for row in rows] == [*names, "matrix products alone"]
        assert rows[-1]["median"] > rows[0]["median"]
    assert set(result["rows"]["swin_tiny, peak memory of a training step, fp32, MiB"]) == set(names)
    assert "peers with default settings" in result["setting"] and capsys.readouterr().out.count("| this program |") == 3
