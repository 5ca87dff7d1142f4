"""Boxes and masks are drawn where they are."""

import numpy as np
from PIL import Image

from tasks.detection.pictures import Drawn, draw_objects, precision_figure, tile

GREY = Image.fromarray(np.full((60, 80, 3), 128, np.uint8))


def test_boxes_and_masks_are_drawn_where_they_are():
    mask = np.zeros((60, 80), bool)
    mask[30:40, 20:40] = True
    drawn = np.asarray(draw_objects(GREY, [Drawn((10, 20, 50, 50), 0, "", mask)])).astype(int)
    changed = (drawn != 128).any(2)
    assert changed[[20, 49], 10:50].all() and changed[20:50, [10, 49]].all()
    assert changed[30:40, 20:40].all() and not changed[25, 15:45].any()
    assert not changed[:20].any() and not changed[50:].any()


def test_a_tile_shows_the_whole_image_in_proportion():
    mask = np.zeros((60, 80), np.uint8)
    mask[20:50, 10:50] = 1
    square = np.asarray(tile(GREY, [Drawn((10, 20, 50, 50), 0, "", mask)], side=160)).astype(int)
    inside = square[20:140]
    changed = (inside != 128).any(2)
    assert (
        square.shape == (160, 160, 3) and (square[:20] == square[0, 0]).all() and (square[140:] == square[0, 0]).all()
    )
    assert changed[40:100, 20:100].all() and not changed[:38].any() and not changed[:, 102:].any()


def test_captions_stay_inside_and_classes_differ_in_colour():
    drawn = np.asarray(draw_objects(GREY, [Drawn((0, 0, 30, 30), 0, "cat 0.9"), Drawn((40, 0, 79, 30), 1, "日本")]))
    assert tuple(drawn[29, 10]) != tuple(drawn[29, 60]) != (128, 128, 128)
    assert draw_objects(GREY, []).size == GREY.size


def test_curves_have_an_entry_for_each_iou():
    figure = precision_figure({"box": np.ones((2, 101)), "mask": np.zeros((2, 101))})
    labels = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert labels == ["box, IoU 0.5", "box, IoU 0.75", "mask, IoU 0.5", "mask, IoU 0.75"]
