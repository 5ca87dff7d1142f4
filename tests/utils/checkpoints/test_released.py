"""Every released recipe builds the model that its row describes."""

from dataclasses import replace
from functools import cache

import pytest
import torch

from configs.loading import load_config
from models.registry import build, model_options
from tests.conftest import RELEASED, ROOT
from tests.tools.errors import raises
from utils.checkpoints.released import released_models, released_url
from utils.cost import count_flops, count_parameters
from utils.errors import CheckpointError


def test_the_table_has_42_rows():
    assert released_models() == RELEASED
    assert len(RELEASED) == len({row["config"] for row in RELEASED}) == 42


@cache
def cost(options, classes):
    """Parameters and multiply-adds; several rows share an architecture."""
    with torch.device("meta"):
        model = build(options, classes)
    return count_parameters(model), count_flops(model, options.img_size)


@pytest.mark.seconds  # all rows together
@pytest.mark.parametrize("row", RELEASED, ids=lambda r: r["config"])
def test_parameters_and_flops(row):
    """Parameters to the unit, multiply-adds within 1 %; the head of the recipe states them too."""
    (path,) = (ROOT / "configs").glob(f"*/{row['config']}.yaml")
    parameters, flops = cost(replace(model_options(load_config(path)), drop_path_rate=0.0), row["classes"])
    assert parameters == row["params"]
    assert flops == pytest.approx(row["flops"], rel=0.01)
    head = path.read_text().split("DATA:")[0].split("MODEL:")[0]
    assert f"{row['params']:,} parameters, {row['flops'] / 1e9:.1f} GFLOPs" in head
    assert str(row.get("imagenet1k_top1", "pre-training")) in head


def test_released_weights_have_a_url():
    url = released_url("swin_tiny_patch4_window7_224")
    assert url.startswith("https://") and url.endswith("/swin_tiny_patch4_window7_224.pth")
    assert released_url("swin_base_patch4_window12_384_22k").endswith(".pth")


def test_a_name_is_the_recipes_or_the_files():
    """The file of this recipe has another name."""
    recipe = "swin_base_patch4_window12_384_22kto1k_finetune"
    assert released_url(recipe) == released_url("swin_base_patch4_window12_384_22kto1k")


def test_segmenters_and_detectors_have_a_url_under_the_name_of_their_recipe():
    dense = [path.stem for folder in ("segmentation", "detection") for path in (ROOT / "configs" / folder).iterdir()]
    released = [name for name in dense if "folder" not in name and "640" not in name]  # of which there are no files
    assert len({released_url(name) for name in released}) == len(released) == 10
    for name in released:
        assert {"mask_rcnn": "mask_rcnn_", "upernet_s": "upernet_", "cascade_m": "cascade_"}[name[:9]] in released_url(
            name
        )
        size = next(size for size in ("tiny", "small", "base") if size in name)
        assert f"swin_{size}_patch4_window7" in released_url(name) and ("_1x" in released_url(name)) == ("_1x" in name)


def test_an_unknown_name_is_refused_with_the_nearest():
    with raises(CheckpointError, "hub:swin_tiny_window7_224", "did you mean swin_tiny_patch4_window7_224"):
        released_url("swin_tiny_window7_224")
    with raises(CheckpointError, "hub:zzz", "'zzz'", "docs/models.md"):
        released_url("zzz")
