"""Keys of segmentation are checked together."""

import pytest

from tests.tools.builders import configured
from tests.tools.errors import raises
from utils.errors import ConfigError

RECIPE = "segmentation/upernet_swin_tiny_ade20k.yaml"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("MODEL.TYPE", "swin_mlp"),
        ("TEST.BEST", "top1"),
        ("AUG.BASE_SIZE", [512, 2048]),
        ("AUG.RATIO_RANGE", [2.0, 0.5]),
        ("TEST.SCALES", [0.0]),
        ("DATA.REDUCE_ZERO_LABEL", "perhaps"),
    ],
)
def test_values_without_meaning_are_rejected(key, value):
    with raises(ConfigError, key):
        configured(RECIPE, **{key.replace(".", "__"): value})


@pytest.mark.parametrize("size", ["tiny", "small", "base"])
def test_the_recipes_are_the_released_ones(size):
    cfg = configured(f"segmentation/upernet_swin_{size}_ade20k.yaml")
    assert cfg.TASK == "segmentation" and cfg.TRAIN.UPDATES == 160_000 and cfg.MODEL.DROP_PATH_RATE == 0.3
    assert cfg.TRAIN.WEIGHT_DECAY == 0.01 and cfg.TRAIN.CLIP_GRAD == 0 and cfg.TRAIN.GLOBAL_BATCH_SIZE == 16
    assert cfg.AUG.BASE_SIZE == [2048, 512] and cfg.LOSS.AUXILIARY == 0.4 and cfg.DATA.IMG_SIZE == 512


def test_other_recipes_load():
    assert configured("segmentation/upernet_swin_large_ade20k_640.yaml").AUG.BASE_SIZE == [2560, 640]
    assert configured("segmentation/upernet_swin_base_ade20k_640.yaml").MODEL.SWIN.DEPTHS == [2, 2, 18, 2]
    assert configured("segmentation/upernet_swin_tiny_folder.yaml").TRAIN.UPDATES == 0
