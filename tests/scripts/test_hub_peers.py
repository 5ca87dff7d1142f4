"""Which other library loads a published model, and why none does."""

import pytest
import torch

from configs.loading import dump_config
from scripts.hub_folder import write_folder
from scripts.hub_peers import difference, find_peer
from scripts.model_card import Card
from scripts.open_model import open_model
from tasks.detection.classes import DetectionInfo
from tasks.registry import new_task
from tasks.segmentation.classes import SegmentationInfo
from tests.models.weights.conftest import fill
from tests.tools.builders import configured
from utils.distributed.world import World

SWIN = {"EMBED_DIM": 8, "DEPTHS": [1, 1, 1, 1], "NUM_HEADS": [1, 1, 2, 2], "WINDOW_SIZE": 4}
DENSE = {
    "segmentation": ("upernet_swin_tiny_ade20k", SegmentationInfo(class_names=("road", "sky"))),
    "detection": ("mask_rcnn_swin_tiny_coco_1x", DetectionInfo(class_names=("road", "sky"), masks=False)),
}
SMALL = {"segmentation": {"MODEL__UPERNET__CHANNELS": 8, "MODEL__UPERNET__AUXILIARY_CHANNELS": 8},
         "detection": {"MODEL__DETECTOR__CHANNELS": 8, "MODEL__DETECTOR__WIDTH": 8}}  # fmt: skip


def opened(task, tmp_path, family="swin"):
    recipe, info = DENSE[task]
    sizes = {f"MODEL__{family.upper()}__{key}": value for key, value in SWIN.items()}
    cfg = configured(f"{task}/{recipe}.yaml", DATA__IMG_SIZE=64, MODEL__TYPE=family, **sizes, **SMALL[task])
    model = fill(new_task(cfg, World()).new_model(info))
    for name, value in model.state_dict().items():
        if name.endswith("running_var"):
            value.uniform_(0.5, 2)
    torch.save({"model": model.state_dict(), "config": dump_config(cfg), **info.as_dict()}, tmp_path / "x.pth")
    return open_model(str(tmp_path / "x.pth"))


def test_transformers_loads_a_segmenter(tmp_path):
    transformers = pytest.importorskip("transformers")
    own = opened("segmentation", tmp_path)
    peer, why_not = find_peer(own)
    assert peer.library == "transformers" and not why_not
    lines = write_folder(own, tmp_path / "hub", Card("me/streets"))
    assert lines[-1].endswith("same weights in this program, same logits in transformers")
    assert 'UperNetForSemanticSegmentation.from_pretrained("me/streets")' in (tmp_path / "hub/README.md").read_text()
    config = transformers.UperNetConfig.from_pretrained(tmp_path / "hub")
    assert config.id2label == {0: "road", 1: "sky"} and config.architectures == ["UperNetForSemanticSegmentation"]
    theirs = transformers.UperNetForSemanticSegmentation.from_pretrained(
        None, config=config, state_dict=dict(peer.weights)
    )
    images = torch.randn(1, 3, 50, 70)
    assert difference(lambda x: theirs.eval()(x).logits, own.model, images) < 1e-5
    assert difference(lambda x: own.model(x) + 1, own.model, images) > 1e-3


@pytest.mark.parametrize(("task", "family"), [("segmentation", "swinv2"), ("detection", "swin")])
def test_what_no_library_has_is_said(task, family, tmp_path):
    peer, why_not = find_peer(opened(task, tmp_path, family))
    assert peer is None and why_not.startswith("not for")
