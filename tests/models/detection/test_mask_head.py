"""Masks: their head, targets and loss, and the paste into an image."""

import math

import pytest
import torch
from torch import tensor

from models.detection.instances import Objects
from models.detection.mask_head import MaskHead, mask_loss, mask_targets, paste


def test_a_map_of_28_pixels_for_every_class():
    torch.manual_seed(0)
    model = MaskHead(3, 4)
    logits = model(torch.randn(2, 4, 14, 14))
    assert logits.shape == (2, 3, 28, 28) and logits.std() > 0.01
    assert model(torch.zeros(0, 4, 14, 14)).shape == (0, 3, 28, 28)
    assert [name for name in model.state_dict() if name.endswith("weight")] == [
        *(f"convs.{i}.conv.weight" for i in range(4)), "upsample.weight", "conv_logits.weight",
    ]  # fmt: skip


def test_targets_are_the_masks_inside_the_regions():
    masks = torch.zeros(2, 40, 60, dtype=torch.uint8)
    masks[0, 10:20, 20:40] = 1  # the upper half of its region
    masks[1] = 1
    truth = Objects(torch.zeros(2, 4), torch.zeros(2), masks)
    region = tensor([[20.0, 10, 40, 30]])
    targets = mask_targets([truth, truth], [region, region.repeat(2, 1)], [tensor([0]), tensor([1, 0])], 28)
    assert targets.shape == (3, 28, 28) and targets.unique().tolist() == [0, 1]
    assert targets[0, :14].all() and not targets[0, 14:].any() and targets[1].all()
    assert torch.equal(targets[0], targets[2])


def test_the_loss_is_a_mean_over_the_pixels_of_the_true_class():
    logits = torch.zeros(2, 3, 28, 28)
    logits[0, 1] = 100
    targets = torch.ones(2, 28, 28)
    assert mask_loss(logits, targets, tensor([1, 0])).item() == pytest.approx(math.log(2) / 2)
    none = mask_loss(logits[:0].requires_grad_(), targets[:0], tensor([], dtype=torch.int64))
    assert none.item() == 0 and none.requires_grad


def test_a_pasted_mask_fills_its_box():
    box = tensor([10.0, 5, 30, 25])
    mask = paste(torch.ones(28, 28), box, (50, 60))
    assert mask.shape == (50, 60) and mask[5:25, 10:30].all() and mask.sum() == 400
    left = torch.zeros(28, 28)
    left[:, :14] = 1
    assert torch.equal(paste(left, box, (50, 60)).nonzero().amax(0), tensor([24, 19]))


def test_a_box_between_pixels_covers_those_whose_centre_it_contains():
    mask = paste(torch.ones(28, 28), tensor([10.6, 5.4, 20.4, 9.6]), (20, 30))
    assert mask.nonzero().amin(0).tolist() == [5, 11] and mask.nonzero().amax(0).tolist() == [9, 19]


def test_masks_end_at_the_image_and_boxes_without_area_have_none():
    assert paste(torch.ones(28, 28), tensor([50.0, 40, 60, 50]), (50, 60))[40:, 50:].all()
    assert not paste(torch.ones(28, 28), tensor([60.0, 40, 60, 50]), (50, 60)).any()
