"""Masks: how many squares, how they are distributed, and what they depend on."""

import torch

from tasks.simmim.masking import Masking, MaskingOptions
from tests.tools.builders import configured
from tests.tools.errors import raises
from utils.errors import ConfigError

RECIPE = MaskingOptions((192, 192), square=32, ratio=0.6)


def test_exactly_22_of_36_squares_are_masked_uniformly():
    torch.manual_seed(0)
    images = torch.zeros(10_000, 1, 1, 1)
    returned, masks = Masking(RECIPE)(images, torch.zeros(10_000))
    assert returned is images and masks.shape == (10_000, 6, 6) and masks.dtype == torch.bool
    assert (masks.sum((1, 2)) == 22).all()
    rate = 22 / 36
    deviation = (rate * (1 - rate) / 10_000) ** 0.5
    assert (masks.float().mean(0) - rate).abs().max() < 4 * deviation  # of 36 squares
    pairs = (masks.flatten(1).float().T @ masks.flatten(1).float()) / 10_000
    expected = 22 * 21 / (36 * 35)  # a uniform permutation: pairs are equally likely, too
    off = pairs[~torch.eye(36, dtype=torch.bool)]
    assert (off - expected).abs().max() < 5 * (expected * (1 - expected) / 10_000) ** 0.5


def test_masks_of_evaluation_depend_on_the_sample_alone():
    masking = Masking(RECIPE)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    one = masking.fixed([5, 6, 7])
    assert torch.equal(before, torch.get_rng_state())  # training is unaffected
    assert torch.equal(masking.fixed(range(6, 8)), one[1:]) and (one.sum((1, 2)) == 22).all()
    assert not torch.equal(one[0], one[1])


def test_options_come_from_the_recipe_and_sides_may_differ():
    cfg = configured("simmim/simmim_pretrain__swin_base__img192_window6__800ep.yaml")
    assert MaskingOptions.from_config(cfg) == RECIPE
    wide = Masking(MaskingOptions((32, 64), square=16, ratio=0.5))
    assert wide.fixed([0]).shape == (1, 2, 4) and (wide.squares, wide.masked) == (8, 4)
    assert Masking(MaskingOptions((32, 32), square=16, ratio=1.0)).fixed([0]).all()


def test_squares_that_do_not_divide_the_image_are_rejected():
    with raises(ConfigError, "DATA.MASK_PATCH_SIZE", "192x192", "36"):
        Masking(MaskingOptions((192, 192), square=36, ratio=0.6))
