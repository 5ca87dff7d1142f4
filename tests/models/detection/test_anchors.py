"""Anchors against values computed by hand, and the ones that train."""

import torch

from models.detection.anchors import anchors_of, usable
from models.detection.instances import Frame

SIZES = [(16, 24), (8, 12), (4, 6), (2, 3), (1, 2)]  # of 64 * 96 pixels


def test_anchors_are_ordered_by_row_column_and_ratio():
    first, *_, last = anchors_of(SIZES, torch.zeros(()))
    assert first.shape == (16 * 24 * 3, 4) and last.shape == (6, 4)
    root = 2**0.5
    expected = [
        [-16 * root, -8 * root, 16 * root, 8 * root],
        [-16, -16, 16, 16],
        [-8 * root, -16 * root] * 1 + [8 * root, 16 * root],
    ]
    torch.testing.assert_close(first[:3], torch.tensor(expected))
    torch.testing.assert_close(first[24 * 3 + 1], torch.tensor([-16.0, -12, 16, 20]))  # the second row, x = 0
    torch.testing.assert_close(last[3 + 1], torch.tensor([64.0 - 256, -256, 64 + 256, 256]))


def test_anchors_at_the_padding_of_the_batch_do_not_train():
    anchors = anchors_of(SIZES, torch.zeros(()))
    masks = usable(anchors, SIZES, Frame((33, 60), (33, 60)), inside=False)  # padded to 64 * 64
    assert [int(mask.sum()) for mask in masks] == [16 * 16 * 3, 8 * 8 * 3, 4 * 4 * 3, 2 * 2 * 3, 3]
    assert masks[0].view(16, 24, 3)[:, :16].all()


def test_anchors_inside_the_image_only():
    anchors = anchors_of(SIZES, torch.zeros(()))
    masks = usable(anchors, SIZES, Frame((33, 60), (33, 60)), inside=True)
    for level, mask in zip(anchors, masks, strict=True):
        x1, y1, x2, y2 = level.unbind(1)
        assert torch.equal(mask, (x1 >= 0) & (y1 >= 0) & (x2 < 60) & (y2 < 33))
    assert masks[0].any() and not masks[2].any()
