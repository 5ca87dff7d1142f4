"""Every released recipe builds the model that its row describes."""

import re

import pytest
import torch

from configs.arguments import model_arguments
from configs.loading import load_config
from models.errors import WeightsError
from models.registry import build_model
from models.weights.released import weights_address
from scripts.model_table import BEGIN, END, table
from tests.configs.test_loading import SECTIONS
from tests.conftest import RELEASED, ROOT
from utils.profiling import count_flops, count_parameters


def test_the_table_has_31_rows():
    assert len(RELEASED) == len({row["config"] for row in RELEASED}) == 31


@pytest.mark.parametrize("row", RELEASED, ids=lambda r: r["config"])
def test_parameters_and_flops(row):
    """Parameters to the unit, multiply-adds within 1 %; the recipe's head states them too."""
    path = ROOT / "configs" / SECTIONS[row["type"]][0] / f"{row['config']}.yaml"
    cfg = load_config(path)
    with torch.device("meta"):
        model = build_model(cfg.MODEL.TYPE, **model_arguments(cfg, row["classes"]))
    assert count_parameters(model) == row["params"]
    assert count_flops(model, cfg.DATA.IMG_SIZE) == pytest.approx(row["flops"], rel=0.01)
    head = path.read_text().split("DATA:")[0].split("MODEL:")[0]
    assert f"{row['params']:,} parameters, {row['flops'] / 1e9:.1f} GFLOPs" in head
    assert str(row.get("imagenet1k_top1", "pre-training")) in head


def test_released_weights_have_an_address():
    address = weights_address("swin_tiny_patch4_window7_224")
    assert address.endswith("/swin_tiny_patch4_window7_224.pth")
    assert weights_address("swin_base_patch4_window12_384_22k").endswith(".pth")
    with pytest.raises(WeightsError, match="did you mean .*swin_tiny_patch4_window7_224"):
        weights_address("swin_tiny_window7_224")
    with pytest.raises(WeightsError, match="README.md lists them all"):
        weights_address("zzz")


def test_the_readme_shows_the_table():
    text = (ROOT / "README.md").read_text()
    assert text.split(BEGIN)[1].split(END)[0].strip() == table().strip()
    assert len(re.findall(r"^\| swin", table(), re.MULTILINE)) == 31
