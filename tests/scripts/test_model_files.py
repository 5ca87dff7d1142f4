"""A model from its file alone."""

import torch

from scripts.model_files import open_model
from scripts.predict import main


def test_weights_that_do_not_store_their_recipe_need_one(made, tiny_yaml, photos, tmp_path, capsys):
    weights = torch.load(made[0] / "model.pth", weights_only=True)["model"]
    torch.save(weights, tmp_path / "bare.pth")
    image = str(next((photos / "val").rglob("*.jpg")))
    assert main([image, "--model", str(tmp_path / "bare.pth")]) == 2
    assert "does not say which model it is of" in capsys.readouterr().err
    assert open_model(str(tmp_path / "bare.pth"), str(tiny_yaml)).class_names == ("class 0", "class 1", "class 2")
