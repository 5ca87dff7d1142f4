"""Exported models: the same logits, any batch or a fixed one, nothing left behind."""

from types import SimpleNamespace

import pytest
import torch

from scripts import predict
from scripts.export import export, main
from scripts.exported_model import open_exported
from scripts.open_model import open_model
from tests.scripts.test_predict import predictions
from tests.tools.builders import small
from tests.tools.errors import raises
from utils.errors import CheckpointError, ConfigError


@pytest.mark.seconds
@pytest.mark.parametrize(("ending", "batch"), [("onnx", 0), ("pt2", 0), ("onnx", 4), ("pt2", 4)])
def test_an_exported_file_needs_nothing_else(made, photos, tmp_path, capsys, ending, batch):
    folder, expected = made
    target = tmp_path / f"model.{ending}"
    assert main([str(folder / "model.pth"), str(target), "--batch", str(batch)]) == 0
    out = capsys.readouterr().out
    assert f"written: {target}: " in out and "for 1 and for 8 images" in out and "speed: " in out
    assert [p.name for p in tmp_path.iterdir()] == [target.name]
    table = tmp_path / "out.csv"
    assert predict.main([str(photos / "val"), "--model", str(target), "--output", str(table), "--batch-size", "6"]) == 0
    # float32 here, bfloat16 there where the processor has it
    assert predictions(table) == {path: (name, pytest.approx(p, abs=2e-2)) for path, (name, p) in expected.items()}
    with pytest.raises(SystemExit):
        predict.main([str(photos / "val"), "--model", str(target), "--features", "pooled", "--output", "x.csv"])
    assert predict.main([str(photos / "val"), "--model", str(target), "--features", "pooled", "--output", "x.npz"]) == 2
    capsys.readouterr()
    assert predict.main([str(photos / "val"), "--model", str(target), "--size", "64"]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"error: {target}: ") and "32x32" in err


@pytest.mark.seconds
def test_a_model_of_another_size(made, tmp_path):
    (line, *_) = export(open_model(str(made[0] / "model.pth"), "", [("TEST.IMG_SIZE", 48, "x")]), tmp_path / "m.pt2", 2)
    assert "2 images of 48x48" in line
    model, notes = open_exported(tmp_path / "m.pt2")
    assert model(torch.randn(3, 3, 48, 48)).shape == (3, 3) and notes["batch"] == 2


@pytest.mark.seconds
def test_a_wrong_export_does_not_appear(made, tmp_path, monkeypatch):
    monkeypatch.setattr("scripts.exported_model.Exported.forward", lambda self, images: torch.ones(len(images), 3))
    with raises(CheckpointError, tmp_path / "model.pt2", "logits differ"):
        export(open_model(str(made[0] / "model.pth")), tmp_path / "model.pt2", 0)
    assert not list(tmp_path.iterdir())


def test_the_ending_decides(capsys):
    with pytest.raises(SystemExit):
        main(["model.pth", "model.xyz"])
    assert "must end in .onnx or .pt2" in capsys.readouterr().err


def test_a_mixture_of_experts_is_rejected_in_one_line(tmp_path):
    opened = SimpleNamespace(model=small("swin_moe"))
    with raises(ConfigError, "MODEL.TYPE", "mixture of experts"):
        export(opened, tmp_path / "x.onnx", 0)


@pytest.mark.seconds
def test_an_export_that_gives_nan_does_not_appear(made, tmp_path, monkeypatch):
    wrong = torch.full((1, 3), float("nan"))
    monkeypatch.setattr("scripts.exported_model.Exported.forward", lambda self, images: wrong.expand(len(images), 3))
    with raises(CheckpointError, tmp_path / "model.pt2", "nan"):
        export(open_model(str(made[0] / "model.pth")), tmp_path / "model.pt2", 0)
    assert not list(tmp_path.iterdir())
