"""Sizes and annotations of images."""

import torch

from models.detection.instances import Frame, Objects


def test_boxes_are_scaled_to_the_original_image_side_by_side():
    frame = Frame(size=(800, 1199), original=(480, 720))
    boxes = frame.to_original(torch.tensor([[119.9, 80.0, 1199.0, 800.0]]))
    torch.testing.assert_close(boxes, torch.tensor([[72.0, 48.0, 720.0, 480.0]]))


def test_sides_are_padded_to_multiples():
    assert Frame((800, 1199), (1, 1)).padded(32) == (800, 1216)


def test_no_objects_have_the_shapes_of_objects():
    boxes, labels, masks = Objects.none((20, 30))
    assert boxes.shape == (0, 4) and labels.dtype == torch.int64 and masks.shape == (0, 20, 30)
    assert Objects.none().masks is None
