"""A model from its file alone."""

import torch

from scripts.open_model import open_model
from scripts.predict import main


def test_weights_that_do_not_store_their_recipe_need_one(made, tiny_yaml, photos, tmp_path, capsys):
    weights = torch.load(made[0] / "model.pth", weights_only=True)["model"]
    torch.save(weights, tmp_path / "bare.pth")
    image = str(next((photos / "val").rglob("*.jpg")))
    assert main([image, "--model", str(tmp_path / "bare.pth")]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"error: {tmp_path / 'bare.pth'}: ") and "--cfg" in err
    assert open_model(str(tmp_path / "bare.pth"), str(tiny_yaml)).class_names == ("class 0", "class 1", "class 2")


def test_a_run_is_opened_at_its_best_checkpoint(made, tmp_path):
    contents = torch.load(made[0] / "model.pth")
    folder = tmp_path / "run/checkpoints"
    folder.mkdir(parents=True)
    for name, epoch in (("ckpt_epoch_3.pth", 3), ("best.pth", 1)):
        torch.save({**contents, "best": {"value": 10.0, "epoch": 1}, "counters": {"epoch": epoch + 1}}, folder / name)
    assert open_model(str(tmp_path / "run")).best == 10.0
    assert open_model(str(folder / "ckpt_epoch_3.pth")).best is None  # the best value is another epoch's
    (folder / "best.pth").unlink()
    assert open_model(str(tmp_path / "run")).best is None
    within = {"value": 20.0, "epoch": 3, "step": 5}
    for counters, known in (({"epoch": 3, "step": 5}, 20.0), ({"epoch": 3, "step": 9}, None), ({"epoch": 4}, None)):
        torch.save({**contents, "best": within, "counters": counters}, folder / "ckpt_epoch_3.pth")
        assert open_model(str(folder / "ckpt_epoch_3.pth")).best == known
