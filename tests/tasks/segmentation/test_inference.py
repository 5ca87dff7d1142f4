"""Whole images, sliding windows, scales and flips against straight computations."""

import pytest
import torch
import torch.nn.functional as F

from tasks.segmentation.inference import InferenceOptions, class_map, starts
from tests.models.heads.test_upernet import segmenter
from tests.tools.builders import configured

RECIPE = "segmentation/upernet_swin_tiny_ade20k.yaml"


def logits_of(model):
    return torch.no_grad()(model)


def test_logits_are_resized_to_the_view_and_then_to_the_image():
    model, image = segmenter(), torch.randn(3, 33, 65)
    found = class_map(logits_of(model), [image], (50, 99), InferenceOptions())
    _, maps = model.backbone.forward_intermediates(image[None])
    small = model.decode_head(maps)
    twice = F.interpolate(F.interpolate(small, (33, 65), mode="bilinear"), (50, 99), mode="bilinear")
    assert found.dtype == torch.uint8 and torch.equal(found, twice[0].argmax(0).byte())


def test_probabilities_of_scales_and_flips_are_averaged_at_the_size_of_the_image():
    model, views = segmenter(), [torch.randn(3, 24, 30), torch.randn(3, 48, 60)]
    found = class_map(logits_of(model), views, (40, 50), InferenceOptions(flip=True))
    total = torch.zeros(1, 5, 40, 50)
    for view in views:
        total += F.interpolate(model(view[None]), (40, 50), mode="bilinear").softmax(1)
        total += F.interpolate(model(view[None].flip(3)).flip(3), (40, 50), mode="bilinear").softmax(1)
    assert torch.equal(found, total[0].argmax(0).byte())


@pytest.mark.parametrize(
    ("side", "window", "stride", "expected"),
    [(10, 4, 3, [(0, 4), (3, 7), (6, 10)]), (11, 4, 3, [(0, 4), (3, 7), (6, 10), (7, 11)]), (3, 4, 3, [(0, 3)])],
)
def test_windows_cover_a_side_and_the_last_one_ends_with_it(side, window, stride, expected):
    assert [(each.start, each.stop) for each in starts(side, window, stride)] == expected


def test_windows_are_averaged_where_they_overlap():
    def position(images):  # logits that depend on the window: its own coordinates
        rows = torch.arange(images.shape[2])[None, None, :, None].expand(1, 1, -1, images.shape[3])
        return torch.cat([rows.float(), images[:, :1]], 1)

    image = torch.full((3, 6, 4), 0.9)
    found = class_map(position, [image], (6, 4), InferenceOptions((4, 4), (2, 2)))
    rows = torch.tensor([0, 1, (2 + 0) / 2, (3 + 1) / 2, 2, 3])
    assert torch.equal(found, (0.9 > rows).byte()[:, None].expand(6, 4))


@pytest.mark.parametrize("size", [(20, 50), (64, 40), (32, 32)])
def test_a_model_of_one_size_sees_only_windows_of_it(size):
    seen = set()

    def logits(images):
        seen.add(tuple(images.shape[2:]))
        return images

    image = torch.rand(3, *size)
    found = class_map(logits, [image], size, InferenceOptions((32, 32), (16, 16), fixed=True))
    assert seen == {(32, 32)} and torch.equal(found, image.argmax(0).byte())


def test_options_come_from_the_recipe():
    assert InferenceOptions.from_config(configured(RECIPE)).window is None
    slide = InferenceOptions.from_config(configured(RECIPE, TEST__MODE="slide", TEST__FLIP=True))
    assert InferenceOptions.from_config(configured(RECIPE), exported=True).fixed
    assert slide == InferenceOptions((512, 512), (341, 341), True)
