"""Whole detectors: numbers of mmdetection 3.3, names and shapes of the released files.

`golden.json` is written by tests/tools/compare_mmdetection.py; losses depend on the draws of torch.randperm.
"""

import json
from pathlib import Path

import pytest
import torch

from models.detection.detector import DETECTORS, Detector
from models.detection.instances import Frame
from models.detection.mask_head import paste
from models.registry import build_model
from tests.models.detection.cases import BACKBONE, BATCHES, FRAMES, batch, detector, padded
from tests.tools.builders import SIZES

GOLDEN = json.loads((Path(__file__).parent / "golden.json").read_text())
SEED = 5


@pytest.mark.seconds
@pytest.mark.parametrize("index", range(len(FRAMES)))
@pytest.mark.parametrize("name", DETECTORS)
def test_detections_equal_those_of_mmdetection(name, index):
    """In float64: rounding does not decide which of two boxes is suppressed."""
    frame, expected = FRAMES[index], GOLDEN[name]["detections"][index]
    model = detector(name).double()
    with torch.no_grad():
        images = padded(frame.size).double()
        proposals = model.rpn_head.proposals(model.rpn_head(model.pyramid(images)), [frame])[0]
        found = model(images, [frame])[0]
    for own, (count, rows) in ((proposals, expected["proposals"]), (found.boxes, expected["boxes"])):
        assert len(own) == count
        torch.testing.assert_close(own[: len(rows)], torch.tensor(rows).double(), rtol=0, atol=1e-4)
    shown = len(expected["scores"])
    torch.testing.assert_close(found.scores[:shown], torch.tensor(expected["scores"]).double(), rtol=0, atol=1e-6)
    assert found.labels[:shown].tolist() == expected["labels"]
    masks = torch.stack([paste(*each, frame.original) for each in zip(found.masks, found.boxes, strict=True)])
    # it pastes in float32, which moves single pixels
    for own, wanted in zip(masks.sum((1, 2)).tolist(), expected["mask_areas"], strict=False):
        assert abs(own - wanted) <= 1
    positions = masks.nonzero().sum(0).double()
    torch.testing.assert_close(positions, torch.tensor(expected["mask_positions"]).double(), rtol=1e-4, atol=0)


@pytest.mark.seconds
@pytest.mark.parametrize("case", BATCHES)
@pytest.mark.parametrize("name", DETECTORS)
def test_losses_equal_those_of_mmdetection(name, case):
    model = detector(name).double().train()
    images, frames, truth = batch(case)
    truth = [each._replace(boxes=each.boxes.double()) for each in truth]
    losses = model.losses(images.double(), frames, truth, torch.Generator().manual_seed(SEED))
    expected = GOLDEN[name]["losses"][case]
    assert losses.keys() == expected.keys()
    for key, value in losses.items():
        assert value.item() == pytest.approx(expected[key], abs=1e-7), key
    sum(losses.values()).backward()
    for key, p in model.named_parameters():
        assert p.grad is not None and torch.isfinite(p.grad).all(), key
        # no anchor of the coarser levels lies inside these small images
        assert p.grad.any() or case == "none" or (name.startswith("cascade") and "neck." in key), key


@pytest.mark.seconds
@pytest.mark.parametrize("name", DETECTORS)
def test_float32_gives_the_same_losses_and_draws_for_the_same_seed(name):
    model = detector(name).train()
    inputs = batch("objects")
    torch.manual_seed(SEED)
    first = model(*inputs)
    again = model.losses(*inputs, torch.Generator().manual_seed(SEED))
    assert all(torch.equal(value, again[key]) for key, value in first.items())
    for key, value in first.items():
        assert value.item() == pytest.approx(GOLDEN[name]["losses"]["objects"][key], abs=0.02), key


@pytest.mark.seconds
def test_half_precision_keeps_losses_and_boxes_in_float32():
    model, inputs = detector("cascade_mask_rcnn"), batch("objects")
    with torch.autocast("cpu", torch.bfloat16):
        losses = model.train()(*inputs)
        found = model.eval()(inputs[0])[0]
    assert {value.dtype for value in losses.values()} == {torch.float32}
    assert found.boxes.dtype == found.scores.dtype == torch.float32


def test_sizes_default_to_the_batch():
    model, images = detector("mask_rcnn"), padded((64, 96))
    own, expected = model(images)[0], model(images, [Frame((64, 96), (64, 96))])[0]
    assert torch.equal(own.boxes, expected.boxes) and own.boxes[:, 2].max() <= 96


def test_strides_of_other_than_four_stages_are_not_supported():
    backbone = build_model("swin", num_classes=0, dense=True, **{**BACKBONE, "depths": (2, 2), "num_heads": (1, 2)})
    with pytest.raises(AssertionError):
        Detector(backbone, 3)


# parameters and tensors of mmdetection 3's models at the published sizes, 80 classes
PUBLISHED = {"mask_rcnn": 47_794_602, "cascade_mask_rcnn": 85_629_804}
# and the shapes in the released files: classes, boxes and masks of COCO
SHAPES = {
    "mask_rcnn": {
        "backbone.norm3.weight": (768,),
        "neck.lateral_convs.0.conv.weight": (256, 96, 1, 1),
        "neck.fpn_convs.3.conv.bias": (256,),
        "rpn_head.rpn_reg.weight": (12, 256, 1, 1),
        "roi_head.bbox_head.shared_fcs.0.weight": (1024, 12544),
        "roi_head.bbox_head.shared_fcs.1.weight": (1024, 1024),
        "roi_head.bbox_head.fc_cls.weight": (81, 1024),
        "roi_head.bbox_head.fc_reg.bias": (320,),
        "roi_head.mask_head.convs.3.conv.weight": (256, 256, 3, 3),
        "roi_head.mask_head.upsample.weight": (256, 256, 2, 2),
        "roi_head.mask_head.conv_logits.weight": (80, 256, 1, 1),
    },
    "cascade_mask_rcnn": {
        "roi_head.bbox_head.0.shared_convs.0.conv.weight": (256, 256, 3, 3),
        "roi_head.bbox_head.1.shared_convs.3.bn.running_var": (256,),
        "roi_head.bbox_head.2.shared_fcs.0.weight": (1024, 12544),
        "roi_head.bbox_head.2.fc_cls.bias": (81,),
        "roi_head.bbox_head.2.fc_reg.weight": (320, 1024),
        "roi_head.mask_head.2.conv_logits.bias": (80,),
    },
}


@pytest.mark.parametrize("name", DETECTORS)
def test_names_shapes_and_sizes_of_the_released_files(name):
    with torch.device("meta"):
        model = Detector(
            build_model("swin", num_classes=0, dense=True, window_size=7, **SIZES["tiny"]), 80, DETECTORS[name]
        )
    assert sum(p.numel() for p in model.parameters()) == PUBLISHED[name]
    shapes = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    assert SHAPES[name].items() <= shapes.items()
    assert any(key.startswith("roi_head.bbox_head.2.") for key in shapes) == name.startswith("cascade")
    assert not any("shared_convs" in key and key.endswith("conv.bias") for key in shapes)
