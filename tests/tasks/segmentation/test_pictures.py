"""Colours over images, and label maps that can be read back."""

import io

import numpy as np
import torch
from PIL import Image

from data.pipeline.label_maps import IGNORED
from tasks.segmentation.pictures import OPACITY, confusion_figure, label_image, overlay
from utils.pictures import as_image

COLOURS = [(200, 0, 0), (0, 100, 0)]
LABELS = np.array([[0, 1, IGNORED], [1, 1, 0]], np.uint8)


def test_a_label_map_is_stored_with_its_classes_and_its_colours():
    buffer = io.BytesIO()
    label_image(LABELS, COLOURS).save(buffer, "PNG")
    read = Image.open(buffer)
    assert read.mode == "P" and np.array_equal(np.asarray(read), LABELS)
    assert read.convert("RGB").getpixel((0, 0)) == (200, 0, 0)


def test_an_overlay_mixes_colours_except_where_pixels_are_ignored():
    image = Image.new("RGB", (3, 2), (100, 100, 100))
    pixels = np.asarray(overlay(image, LABELS, COLOURS))
    assert pixels[0, 2].tolist() == [100, 100, 100]
    assert pixels[0, 0, 0] == round(100 * (1 - OPACITY) + 200 * OPACITY)
    assert overlay(image.resize((30, 20)), LABELS, COLOURS).size == (3, 2)


def test_the_confusion_of_classes_is_drawn():
    assert as_image(confusion_figure(torch.tensor([[3, 1], [0, 0]]), ["a", "$b"])).width > 100
