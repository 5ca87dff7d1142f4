"""Fine-tuning by the defaults of timm's train.py."""

from itertools import product

import torch
from PIL import Image

from configs.loading import dump_config
from models.registry import build, model_options
from scripts.benchmarks.timm_defaults import finetune
from tests.tools.builders import configured


def test_a_pretrained_model_learns_two_colours(tmp_path):
    for split, colour, number in product(("train", "val"), ("red", "blue"), range(6)):
        path = tmp_path / split / colour / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (32, 32), colour).save(path)
    swin = {"EMBED_DIM": 8, "DEPTHS": [1, 1], "NUM_HEADS": [1, 2], "WINDOW_SIZE": 4}
    cfg = configured(DATA__IMG_SIZE=32, **{f"MODEL__SWIN__{name}": value for name, value in swin.items()})
    torch.manual_seed(0)
    weights = build(model_options(cfg), 3).state_dict()
    torch.save({"model": weights, "config": dump_config(cfg)}, tmp_path / "weights.pth")
    assert finetune(tmp_path / "weights.pth", tmp_path, seed=0, epochs=20) == 100
