"""Pictures of masked images."""

import torch

from tasks.simmim.pictures import GREY, hide, masked_sheet, reconstruction_sheet
from utils.batches import Batch
from utils.pictures import GAP, TILE
from utils.preprocessing import Preprocessing

MASKS = torch.tensor([[[True, False], [False, False]], [[False, False], [False, True]]])


def test_masked_squares_are_grey():
    hidden = hide(torch.zeros(2, 3, 8, 8, dtype=torch.uint8), MASKS)
    assert (hidden[0, :, :4, :4] == GREY).all() and hidden[0].sum() == GREY * 3 * 16
    assert (hidden[1, :, 4:, 4:] == GREY).all()


def test_a_training_batch_is_shown_with_its_masks():
    images = torch.full((2, 3, 8, 8), 5.0)
    plain, masked, one = (
        masked_sheet(Batch(images, masks), Preprocessing(), limit)
        for masks, limit in ((None, 2), (MASKS, 2), (MASKS, 1))
    )
    assert plain.size == masked.size and plain.tobytes() != masked.tobytes()
    assert one.width <= masked.width


def test_labels_of_a_dataset_that_has_some_are_no_masks():
    images = torch.full((2, 3, 8, 8), 5.0)
    unmasked, labelled = (masked_sheet(Batch(images, t), Preprocessing(), 2) for t in (None, torch.tensor([3, 1])))
    assert unmasked.tobytes() == labelled.tobytes()


def test_a_reconstruction_has_three_rows():
    images = torch.randn(2, 3, 8, 8)
    sheet = reconstruction_sheet(images, MASKS, images.flip(0), Preprocessing())()
    assert sheet.height > 3 * TILE and sheet.width >= 2 * TILE + GAP
