"""Whole segmenters and detectors between the layouts of the authors, mm* and transformers, through the script."""

import pytest
import torch

from configs.loading import load_config
from scripts.convert_checkpoint import convert
from tasks.detection.classes import DetectionInfo
from tasks.registry import new_task
from tasks.segmentation.classes import SegmentationInfo
from tests.models.weights.test_parts import fill
from tests.tools.errors import raises
from utils.checkpoints.files import read_checkpoint
from utils.distributed.world import World
from utils.errors import CheckpointError

RECIPE = """
TASK: segmentation
DATA: {IMG_SIZE: 64}
MODEL: {SWIN: {EMBED_DIM: 8, DEPTHS: [1, 1, 2, 1], NUM_HEADS: [1, 2, 4, 8], WINDOW_SIZE: 4},
        UPERNET: {CHANNELS: 8, AUXILIARY_CHANNELS: 6}}
"""


@pytest.fixture
def made(tmp_path):
    """A recipe, and random weights of three classes as in.pth."""
    (tmp_path / "seg.yaml").write_text(RECIPE)
    task = new_task(load_config(tmp_path / "seg.yaml"), World())
    model = fill(task.new_model(SegmentationInfo(class_names=("a", "b", "c"))))
    for name, value in model.state_dict().items():
        if name.endswith("running_var"):
            value.uniform_(0.5, 2)
    torch.save({"state_dict": model.state_dict(), "meta": {"CLASSES": ("a", "b", "c")}}, tmp_path / "in.pth")
    return tmp_path, model.state_dict()


@pytest.mark.parametrize("ending", ["pth", "safetensors"])
@pytest.mark.parametrize("to", ["mmsegmentation", "transformers", "original"])
def test_there_and_back_gives_the_same_bits(made, to, ending):
    folder, weights = made
    there, back = folder / f"there.{ending}", folder / "back.pth"
    lines = convert(str(folder / "seg.yaml"), str(folder / "in.pth"), there, to)
    assert "bit-identical" in lines[-1] and (to != "transformers" or "outputs equal" in lines[-1])
    convert(str(folder / "seg.yaml"), str(there), back, "original")
    written = read_checkpoint(back)["model"]
    assert written.keys() == weights.keys()
    assert all(torch.equal(written[name], value) for name, value in weights.items())


@pytest.mark.parametrize("name", ["mask_rcnn", "cascade_mask_rcnn"])
def test_detectors_there_and_back(tmp_path, name):
    recipe = RECIPE.replace("segmentation", "detection").split("        UPERNET")[0]
    (tmp_path / "det.yaml").write_text(f"{recipe}        DETECTOR: {{NAME: {name}, CHANNELS: 8, WIDTH: 8}}}}\n")
    task = new_task(load_config(tmp_path / "det.yaml"), World())
    weights = fill(task.new_model(DetectionInfo(class_names=("a", "b")))).state_dict()
    torch.save({"state_dict": weights, "meta": {"CLASSES": ("a", "b")}}, tmp_path / "in.pth")
    command = str(tmp_path / "det.yaml")
    assert "bit-identical" in convert(command, str(tmp_path / "in.pth"), tmp_path / "there.pth", "mmdetection")[-1]
    convert(command, str(tmp_path / "there.pth"), tmp_path / "back.pth", "original")
    written = read_checkpoint(tmp_path / "back.pth")["model"]
    assert written.keys() == weights.keys()
    assert all(torch.equal(written[key], value) for key, value in weights.items())
    with raises(CheckpointError, "--to", "transformers", "mmdetection"):
        convert(command, str(tmp_path / "in.pth"), tmp_path / "out.pth", "transformers")


def test_a_layout_without_such_models_is_rejected(made):
    folder, _ = made
    with raises(CheckpointError, "--to", "torchvision", "mmdetection"):
        convert(str(folder / "seg.yaml"), str(folder / "in.pth"), folder / "out.pth", "torchvision")


def test_a_classifier_is_no_whole_model(made):
    folder, weights = made
    backbone = {name: value for name, value in weights.items() if not name.startswith(("decode", "auxiliary"))}
    torch.save({"model": backbone}, folder / "in.pth")
    with raises(CheckpointError, str(folder / "in.pth"), "segmentation head"):
        convert(str(folder / "seg.yaml"), str(folder / "in.pth"), folder / "out.pth", "original")
