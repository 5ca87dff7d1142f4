"""Stages of detection in regions beyond what the comparison with mmdetection covers."""

import pytest
import torch

from models.detection.instances import Frame, Objects
from tests.models.detection.cases import CHANNELS, CLASSES, detector, objects

FRAME = Frame((60, 90), (60, 90))
PROPOSALS = torch.tensor([[3.0, 4, 40, 30], [10, 10, 80, 50], [20, 5, 30, 55], [50, 20, 88, 58]])


def maps(images=1):
    torch.manual_seed(0)
    return [torch.randn(images, CHANNELS, -(-64 // s), -(-96 // s), requires_grad=True) for s in (4, 8, 16, 32, 64)]


@pytest.fixture(params=["mask_rcnn", "cascade_mask_rcnn"])
def head(request):
    return detector(request.param).roi_head


@pytest.mark.parametrize("counts", [(0, 0), (2, 0), (3, 1)])
def test_names_are_fixed_and_every_parameter_has_a_gradient(head, counts):
    head.train()
    truth = [objects(FRAME.size, count, (64, 96)) for count in counts]
    losses = head.losses(maps(2), [PROPOSALS, PROPOSALS], [FRAME] * 2, truth)
    names = ["loss_cls", "loss_bbox", "loss_mask"]
    several = len(head.stages()) > 1
    assert list(losses) == ([f"s{i}.{name}" for i in range(3) for name in names] if several else names)
    sum(losses.values()).backward()
    for name, p in head.named_parameters():
        assert p.grad is not None and torch.isfinite(p.grad).all(), name
        assert p.grad.any() or (not sum(counts) and ("mask" in name or "reg" in name)), name


def test_neither_proposals_nor_objects_give_zeros(head):
    head.train()
    losses = head.losses(maps(), [PROPOSALS[:0]], [FRAME], [Objects.none((64, 96))])
    assert not any(value.item() for value in losses.values())
    sum(losses.values()).backward()
    assert all(p.grad is not None and not p.grad.any() for p in head.parameters())
    assert all(torch.isfinite(value).all() for value in head.state_dict().values())


def test_boxes_alone_train_without_masks():
    head = detector("cascade_mask_rcnn", masks=False).roi_head.train()
    losses = head.losses(maps(), [PROPOSALS], [FRAME], [objects(FRAME.size, 2, (64, 96))._replace(masks=None)])
    assert list(losses) == [f"s{i}.{name}" for i in range(3) for name in ("loss_cls", "loss_bbox")]
    assert not any(name.startswith("mask_head") for name in head.state_dict())
    assert head.eval().detect(maps(), [PROPOSALS], [FRAME])[0].masks is None


def test_detections_of_images_are_independent(head):
    both = head.detect(maps(2), [PROPOSALS, PROPOSALS[:1]], [FRAME, Frame((60, 90), (30, 45))])
    second = head.detect([x[1:] for x in maps(2)], [PROPOSALS[:1]], [FRAME])[0]
    assert 0 < len(second.boxes) <= CLASSES and both[1].masks.shape == (len(second.boxes), 28, 28)
    torch.testing.assert_close(both[1].boxes * 2, second.boxes)
    torch.testing.assert_close(both[1].masks, second.masks)


def test_an_image_without_proposals_has_no_detections(head):
    found = head.detect(maps(), [PROPOSALS[:0]], [FRAME])[0]
    assert found.boxes.shape == (0, 4) and found.masks.shape == (0, 28, 28)


def test_weights_of_the_losses_decrease_with_the_stages():
    head = detector("cascade_mask_rcnn").roi_head
    assert [stage.options.weight for stage in head.stages()] == [1, 0.5, 0.25]
    assert [stage.options.matching.positive for stage in head.stages()] == [0.5, 0.6, 0.7]


def test_the_regions_of_later_stages_are_refined_and_without_the_objects_own_boxes(monkeypatch):
    head, drawn = detector("cascade_mask_rcnn").roi_head.train(), []
    from models.detection import roi_head as module

    original = module.sample_regions

    def recorded(proposals, *others):
        drawn.append(proposals)
        return original(proposals, *others)

    monkeypatch.setattr(module, "sample_regions", recorded)
    head.losses(maps(), [PROPOSALS], [FRAME], [objects(FRAME.size, 2, (64, 96))])
    assert [len(each) for each in drawn] == [4, 4, 4] and not torch.equal(drawn[0], drawn[1])
    assert all((each[:, 2] <= 90).all() and not each.requires_grad for each in drawn)
