"""The picture of a run."""

import json

import pytest
from PIL import Image

from utils.training.curves import draw_curves

TRAIN = [{"kind": "train", "update": u, "loss": 3.0 / u, "lr": 0.1} for u in range(1, 9)]


@pytest.mark.parametrize(
    ("val", "best"),
    [
        ([{"kind": "val", "update": 8, "loss": None, "top1": 50.0, "topk": 90.0, "k": 5}], "top1"),
        ([{"kind": "val", "update": 8, "distance": 0.5}], "distance"),
        ([{"kind": "epoch", "update": 8, "train_loss": 0.5}], None),
        ([], "top1"),
    ],
    ids=["accuracy", "another metric", "no evaluation", "nothing yet"],
)
def test_any_run_can_be_drawn(tmp_path, val, best):
    metrics, picture = tmp_path / "metrics.jsonl", tmp_path / "curves.png"
    metrics.write_text("".join(json.dumps(line) + "\n" for line in [*TRAIN, *val]))
    draw_curves(metrics, picture, 4, best)
    with Image.open(picture) as image:
        assert image.size[0] > 800 and len(image.convert("L").getcolors()) > 10
    assert sorted(p.name for p in tmp_path.iterdir()) == ["curves.png", "metrics.jsonl"]
