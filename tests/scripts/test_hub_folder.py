"""Contents of a hub repository, read by both programs."""

import json

import pytest
import torch
import yaml

from configs.loading import dump_config
from models.registry import build, model_options
from scripts.hub_folder import write_folder
from scripts.model_card import Card
from scripts.open_model import open_model
from tests.tools.builders import configured, randomize
from tests.tools.errors import raises
from utils.errors import CheckpointError

SMALL = {
    "swinv2/swinv2_tiny_patch4_window8_256.yaml": "SWINV2",
    "swinmlp/swin_mlp_tiny_c12_patch4_window8_256.yaml": "SWIN_MLP",
    "swinmoe/swin_moe_small_patch4_window12_192_8expert_32gpu_22k.yaml": "SWIN_MOE",
}


def stored(path, recipe, group, **more):
    """A small model of a recipe as the file of a run."""
    sizes = {"EMBED_DIM": 24, "DEPTHS": [2, 2], "NUM_HEADS": [2, 4], "WINDOW_SIZE": 4}
    sizes = {f"MODEL__{group}__{key}": value for key, value in sizes.items()}
    cfg = configured(recipe, DATA__IMG_SIZE=32, **sizes, **more)
    contents = {"model": randomize(build(model_options(cfg), 3)).state_dict(), "config": dump_config(cfg)}
    torch.save({**contents, "class_names": ["a", "b", "n01440764"]}, path)
    return open_model(str(path))


def test_a_swin_is_written_for_both_programs(made, tmp_path):
    contents = torch.load(made[0] / "model.pth")
    contents |= {"best": {"value": 91.25, "epoch": 4}, "counters": {"epoch": 5, "step": 0}}
    torch.save(contents, tmp_path / "best.pth")
    opened = open_model(str(tmp_path / "best.pth"))
    written, verified = write_folder(opened, tmp_path / "hub", Card("me/tench", "mit", "photos"))
    assert "README.md, config.json, model.safetensors" in written and "this program, same logits in timm" in verified
    config = json.loads((tmp_path / "hub/config.json").read_text())
    assert config["label_names"] == ["class_0", "class_1", "n01440764"] and config["num_classes"] == 3
    own = config["pretrained_cfg"]
    assert own["mean"] == [0.4, 0.5, 0.6] and own["crop_pct"] == 0.9 and own["input_size"][1:] == [*opened.size]
    _, head, text = (tmp_path / "hub/README.md").read_text().split("---\n", 2)
    data = yaml.safe_load(head)
    assert (data["license"], data["library_name"], data["datasets"]) == ("mit", "timm", ["photos"])
    (result,) = data["model-index"][0]["results"]
    assert result["metrics"][0]["value"] == 91.25
    assert "top-1 accuracy 91.25%" in text and "--model hf:me/tench" in text


def test_what_is_published_has_no_paths_of_the_machine(made, tmp_path):
    """Neither the card nor the configuration in the weights; results and thresholds are carried along."""
    contents = torch.load(made[0] / "model.pth")
    own = yaml.safe_load(contents["config"])
    own["DATA"]["DATA_PATH"], own["MODEL"]["PRETRAINED"], own["OUTPUT"] = (
        "/home/me/photos",
        "/home/me/a.pth",
        "/home/me",
    )
    counts = {"samples": [4, 1, 0], "correct": [2, 1, 0], "predicted": [2, 1, 2]}
    more = {"per_class": counts, "data_counts": [7, 8, 9], "calibration": {"temperature": 0.5}}
    torch.save({**contents, "config": yaml.safe_dump(own), **more}, tmp_path / "own.pth")
    opened = open_model(str(tmp_path / "own.pth"))
    write_folder(opened, tmp_path / "hub", Card("me/tench"))
    for path in (tmp_path / "hub").iterdir():
        assert b"/home/me" not in path.read_bytes() and str(tmp_path).encode() not in path.read_bytes()
    published = open_model(str(tmp_path / "hub/model.safetensors"))
    assert {name: published.task.contents[name] for name in more} == more
    assert published.cfg.MODEL == {**opened.cfg.MODEL, "PRETRAINED": ""} and published.cfg.DATA.DATA_PATH == ""


@pytest.mark.parametrize("recipe", SMALL)
def test_other_families(tmp_path, recipe):
    """V2, pre-trained in a different window size, is timm's too; Swin-MLP and Swin-MoE are not."""
    more = {"MODEL__SWINV2__PRETRAINED_WINDOW_SIZES": [6, 6]} if "v2" in recipe else {}
    more |= {"MODEL__SWIN_MOE__MOE_BLOCKS": [[1], [0]]} if "moe" in recipe else {}
    opened = stored(tmp_path / "model.pth", recipe, SMALL[recipe], **more)
    assert opened.best is None
    _, *why_not, verified = write_folder(opened, tmp_path / "hub", Card("me/other"))
    assert why_not == ([] if "v2" in recipe else [f"not for timm: it has no {type(opened.model).__name__}"])
    assert ("timm" in verified) == ("v2" in recipe) == (tmp_path / "hub/config.json").exists()
    text = (tmp_path / "hub/README.md").read_text()
    assert ("import timm" in text) == ("v2" in recipe) and "license" not in text.split("---")[1]
    assert "accuracy" not in text


def test_a_folder_that_reads_back_differently_is_not_used(made, tmp_path, monkeypatch):
    opened = open_model(str(made[0] / "model.pth"))
    monkeypatch.setattr("scripts.hub_folder.open_model", lambda name: opened_with_other_weights(name))

    def opened_with_other_weights(name):
        other = open_model(name)
        other.model.head.bias.data += 1
        return other

    with raises(CheckpointError, tmp_path, "weights differ"):
        write_folder(opened, tmp_path, Card("me/x"))
