"""Sheets of images, and pixels as they were."""

import numpy as np
import torch
from PIL import Image

from utils.fonts import wrapped
from utils.pictures import CAPTION, GAP, HEAD, LINE, SMALL, TILE, new_figure, rendered, restore, sheet, to_image
from utils.preprocessing import Preprocessing


def test_normalised_pixels_are_restored():
    own = Preprocessing((0.4, 0.5, 0.6), (0.2, 0.2, 0.3))
    pixels = torch.randint(256, (2, 3, 4, 4), dtype=torch.uint8)
    mean, std = (torch.tensor(each).view(-1, 1, 1) for each in (own.mean, own.std))
    assert torch.equal(restore((pixels / 255 - mean) / std, own), pixels)


def test_images_have_three_channels_or_one():
    assert to_image(torch.zeros(3, 4, 6, dtype=torch.uint8)).size == (6, 4)
    assert to_image(torch.zeros(3, 4, 6, dtype=torch.uint8)).mode == "RGB"
    assert to_image(torch.zeros(5, 4, 6, dtype=torch.uint8)).mode == "L"


LONG = "a name that is far too long for a tile of this width"


def test_tiles_stand_in_rows_and_long_captions_take_more_lines():
    blue = Image.new("RGB", (10, 10), (0, 0, 255))
    tiles = [(blue, LONG)] + [(blue, "short")] * 8
    drawn = np.asarray(sheet(tiles, "title", ""))
    lines = len(wrapped(LONG, TILE, SMALL))
    first = TILE + CAPTION + (lines - 1) * LINE + GAP
    assert lines > 1 and drawn.shape[0] == HEAD + first + TILE + CAPTION + 2 * GAP
    assert drawn[HEAD + TILE // 2, GAP + TILE // 2].tolist() == [0, 0, 255]
    assert drawn[HEAD + first + TILE // 2, GAP + TILE // 2].tolist() == [0, 0, 255]
    below = np.asarray(sheet([(blue, LONG)], "t", ""))[HEAD + TILE :]
    assert (below[:, GAP + TILE :] == np.array([251, 250, 247])).all()  # nothing sticks out


def test_a_figure_becomes_an_image():
    figure = new_figure(2, 1)
    figure.subplots().plot([0, 1])
    assert rendered(figure, dpi=100).size == (200, 100)


def test_a_dollar_in_a_name_is_not_mathematics():
    figure = new_figure(2, 2)
    axes = figure.subplots()
    axes.set_title(r"$\frac{$")
    axes.set_xticks([0, 1], ["$5_$10", r"\x$"])
    assert rendered(figure).width > 100


def test_a_letter_that_no_font_has_is_no_warning(recwarn):
    figure = new_figure(2, 2)
    figure.subplots().set_title("\U0001096b")
    assert rendered(figure).width > 100 and not [each.message for each in recwarn]
