"""The recipes of detection, and keys that do not apply to it."""

import pytest
import torch

from models.detection.detector import Detector
from tasks.detection.classes import DetectionInfo
from tasks.registry import new_task
from tests.tools.builders import RECIPES, configured
from tests.tools.errors import raises
from utils.cost import count_flops, count_parameters
from utils.distributed.world import World
from utils.errors import ConfigError

NAMES = sorted(path.stem for path in (RECIPES / "detection").glob("*.yaml"))
TINY = "detection/mask_rcnn_swin_tiny_coco_1x.yaml"
# GFLOPs at 1280x800 and million parameters, as published; drop path; epochs; box head's convolutions
RELEASED = {
    "mask_rcnn_swin_tiny_coco_1x": (267, 48, 0.1, 12, 0),
    "mask_rcnn_swin_tiny_coco_3x": (267, 48, 0.2, 36, 0),
    "mask_rcnn_swin_small_coco_3x": (359, 69, 0.2, 36, 0),
    "cascade_mask_rcnn_swin_tiny_coco_1x": (745, 86, 0.0, 12, 4),
    "cascade_mask_rcnn_swin_tiny_coco_3x": (745, 86, 0.2, 36, 4),
    "cascade_mask_rcnn_swin_small_coco_3x": (838, 107, 0.2, 36, 4),
    "cascade_mask_rcnn_swin_base_coco_3x": (982, 145, 0.3, 36, 4),
    "mask_rcnn_swin_tiny_folder": (267, 48, 0.1, 36, 0),
}


def test_every_recipe_is_listed():
    assert NAMES == sorted(RELEASED)


@pytest.mark.parametrize("name", NAMES)
def test_recipes_build_the_released_models(name):
    cfg = configured(f"detection/{name}.yaml")
    gflops, millions, drop_path, epochs, convs = RELEASED[name]
    info = DetectionInfo(class_names=("x",) * 80)
    with torch.device("meta"):
        model = new_task(cfg, World()).new_model(info)
    assert isinstance(model, Detector) and round(count_parameters(model) / 1e6) == millions
    assert count_flops(model, (800, 1280)) / 1e9 == pytest.approx(gflops, abs=1.2)
    assert (cfg.MODEL.DROP_PATH_RATE, cfg.TRAIN.EPOCHS) == (drop_path, epochs)
    steps = {12: [8, 11], 36: [27, 33]}[epochs]
    assert cfg.TRAIN.LR_SCHEDULER.MULTISTEPS == steps and cfg.TRAIN.LR == 1e-4 and cfg.TRAIN.WEIGHT_DECAY == 0.05
    assert len(model.roi_head.options.stages) == (3 if convs else 1) and model.roi_head.options.head.convs == convs
    assert cfg.MODEL.NAME == name


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("TEST.CLASSES", "x.txt"),
        ("MODEL.TYPE", "swin_mlp"),
        ("TEST.BEST", "top1"),
        ("DISTILLATION.KIND", "hard"),
        ("AUG.SHORT_SIDES", []),
        ("AUG.CROP_RANGE", [600, 384]),
        ("TEST.DETECTIONS", "x.csv"),
    ],
)
def test_keys_without_meaning_are_errors(key, value):
    with raises(ConfigError, key):
        configured(TINY, **{key.replace(".", "__"): value})
