"""The mean of checkpoints."""

import pytest
import torch

from scripts.average_checkpoints import checkpoints_of, main
from scripts.open_model import open_model
from tests.tools.builders import small
from tests.tools.errors import raises
from utils.errors import CheckpointError


def write(path, value, **more):
    path.parent.mkdir(parents=True, exist_ok=True)
    model = {"a": torch.full((2,), value), "n": torch.tensor(int(value)), "h": torch.full((1,), value).half()}
    torch.save({"model": model, "class_names": ["x"], "optimizer": {}, **more}, path)
    return str(path)


def test_the_mean_keeps_what_describes_the_weights(tmp_path, capsys):
    described = {"held_out": ["x/1.jpg"], "label_values": {"0": 255, "7": 0}, "class_colours": [[0, 0, 0]]}
    files = [write(tmp_path / f"{i}.pth", float(i), **described) for i in (1, 2, 6)]
    assert main([*files, str(tmp_path / "new/mean.pth")]) == 0
    found = torch.load(tmp_path / "new/mean.pth", weights_only=True)
    assert found["model"]["a"].tolist() == [3.0, 3.0] and found["model"]["h"].dtype == torch.float32
    assert found["model"]["n"].item() == 6 and found["class_names"] == ["x"] and "optimizer" not in found
    assert {name: found[name] for name in described} == described
    assert "mean of 3 checkpoints, 1.pth to 6.pth" in capsys.readouterr().out


def test_averaged_weights_are_preferred_as_in_evaluation(tmp_path):
    one = write(tmp_path / "a.pth", 1.0, model_ema={"a": torch.tensor([5.0])})
    assert main([one, one, str(tmp_path / "mean.pth")]) == 0
    assert torch.load(tmp_path / "mean.pth", weights_only=True)["model"]["a"].item() == 5.0


def test_a_forgotten_target_overwrites_no_checkpoint(tmp_path, capsys):
    files = [write(tmp_path / f"{i}.pth", float(i), config=f"SEED: {i}") for i in (1, 2, 3)]
    assert main(files) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"error: {files[2]}: ") and "--force" in err
    assert torch.load(files[2], weights_only=True)["model"]["a"][0] == 3
    assert main([*files, "--force"]) == 0 and torch.load(files[2], weights_only=True)["model"]["a"][0] == 1.5
    assert "2 runs with different configurations" in capsys.readouterr().out
    assert main([files[0], str(tmp_path / "mean.pth")]) == 2
    assert capsys.readouterr().err.startswith(f"error: {files[0]}: ")


def test_a_folder_means_its_epochs(tmp_path):
    for name in ("ckpt_epoch_9.pth", "ckpt_epoch_10.pth", "ckpt_epoch_11.pth", "ckpt_epoch_12_step_3.pth"):
        write(tmp_path / "run/checkpoints" / name, 1.0)
    names = [path.name for path in checkpoints_of([tmp_path / "run"], 0)]
    assert names == ["ckpt_epoch_9.pth", "ckpt_epoch_10.pth", "ckpt_epoch_11.pth"]
    assert [path.name for path in checkpoints_of([tmp_path / "run/checkpoints"], 2)] == names[1:]
    write(tmp_path / "run/checkpoints/ckpt_epoch_5.pth", 1.0)  # the best one, kept besides the newest
    assert [path.name for path in checkpoints_of([tmp_path / "run"], 0)] == names
    (tmp_path / "run/config.yaml").write_text("SAVE_FREQ: 4\n")
    assert [path.name for path in checkpoints_of([tmp_path / "run"], 0)] == ["ckpt_epoch_5.pth", *names]
    with raises(CheckpointError, tmp_path, "epoch"):
        checkpoints_of([tmp_path], 0)


def test_each_mistake_has_a_line_of_its_own(tmp_path, capsys):
    for arguments, subject in ((["a", "b.txt"], "target"), (["a", "b.pth", "--last", "-1"], "--last")):
        with pytest.raises(SystemExit):
            main(arguments)
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"error: {subject}: ") and "; " not in line


def test_other_models_and_other_files_are_rejected(tmp_path, capsys):
    one = write(tmp_path / "a.pth", 1.0)
    torch.save({"model": small().state_dict()}, tmp_path / "b.pth")
    assert main([one, str(tmp_path / "b.pth"), str(tmp_path / "mean.pth")]) == 4
    err = capsys.readouterr().err
    assert err.startswith(f"error: {tmp_path / 'b.pth'}: ") and one in err and not (tmp_path / "mean.pth").exists()
    with pytest.raises(SystemExit):
        main([one, "mean.txt"])


@pytest.mark.parametrize("name", ["mean.pth", "mean.safetensors"])
def test_the_result_predicts(made, tmp_path, name):
    model = str(made[0] / "model.pth")
    assert main([model, model, str(tmp_path / name)]) == 0
    images = torch.randn(2, 3, 32, 32)
    opened = open_model(str(tmp_path / name))
    torch.testing.assert_close(opened.model(images), open_model(model).model(images))
    assert opened.class_names == open_model(model).class_names
