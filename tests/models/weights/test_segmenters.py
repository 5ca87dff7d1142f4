"""Segmenters of the published sizes have the names and shapes of the released files."""

import json
from pathlib import Path

import pytest
import torch

from models.weights.layouts import LAYOUTS
from models.weights.parts import whole_from_original
from tasks.registry import new_task
from tests.tools.builders import configured
from utils.distributed.world import World

# names and shapes of mmsegmentation 1.2.2's models, whose heads and norms are named as in the authors' files
RELEASED = json.loads((Path(__file__).parent / "segmenters.json").read_text())


@pytest.mark.parametrize("recipe", RELEASED)
def test_names_and_shapes_are_those_of_the_published_models(recipe):
    with torch.device("meta"):
        own = new_task(configured(f"segmentation/{recipe}.yaml"), World()).new_model(None).state_dict()
    stored = whole_from_original(own, LAYOUTS["mmdetection"], "backbone.")
    expected = {name: shape for name, shape in RELEASED[recipe].items() if not name.endswith("position_index")}
    assert {name: list(value.shape) for name, value in stored.items()} == expected
    heads = {name for name in expected if not name.startswith("backbone.stages") and "patch_embed" not in name}
    assert heads <= own.keys() and {"backbone.norm3.bias", "decode_head.psp_modules.3.1.bn.running_var"} <= heads
