"""The window grid against examples counted by hand."""

import pytest
import torch

from models.ops.windows import WindowGrid, permute_tokens, relative_position_index


def test_unshifted_windows_are_the_blocks_of_the_map():
    x = torch.arange(4 * 6.0).view(1, 4, 6, 1)
    windows = WindowGrid.of(4, 6, 2, 0).split(x)[0, :, :, 0]
    assert windows.shape == (6, 4)
    assert windows[0].tolist() == [0, 1, 6, 7]
    assert windows[5].tolist() == [16, 17, 22, 23]


def test_shifted_windows_start_at_the_shift():
    x = torch.arange(16.0).view(1, 4, 4, 1)
    windows = WindowGrid.of(4, 4, 2, 1).split(x)[0, :, :, 0]
    assert windows[0].tolist() == [5, 6, 9, 10]
    assert windows[3].tolist() == [15, 12, 3, 0]


def test_mask_separates_what_the_shift_brought_together():
    mask = WindowGrid.of(4, 4, 2, 1).mask(torch.device("cpu"))
    assert mask is not None and mask.shape == (4, 4, 4)
    assert (mask[0] == 0).all()  # an inner window
    right = torch.tensor([[0, 1, 0, 1], [1, 0, 1, 0], [0, 1, 0, 1], [1, 0, 1, 0]])
    assert torch.equal(mask[1], right * -100.0)  # left column of the map meets the right one
    assert torch.equal(mask[3] == 0, torch.eye(4, dtype=torch.bool))  # four corners


@pytest.mark.parametrize(("height", "width"), [(7, 7), (8, 8), (13, 20), (3, 5), (1, 1), (7, 10)])
@pytest.mark.parametrize("shift", [0, 3])
def test_merge_inverts_split(height, width, shift):
    grid = WindowGrid.of(height, width, 7, shift)
    x = torch.randn(2, height, width, 3)
    windows = grid.split(x)
    assert windows.shape[2] == 49
    assert torch.equal(grid.merge(windows), x)


def test_a_side_that_one_window_covers_is_not_shifted():
    assert WindowGrid.of(7, 7, 7, 3).mask(torch.device("cpu")) is None
    wide = WindowGrid.of(7, 10, 7, 3)
    assert (wide.shift_h, wide.shift_w) == (0, 3)


@pytest.mark.parametrize(("height", "width"), [(7, 7), (5, 10), (3, 3)])
def test_dense_models_shift_a_side_that_one_window_covers(height, width):
    """A roll, as the released detectors and segmenters compute it, and a mask that keeps the edges apart."""
    grid = WindowGrid.of(height, width, 7, 3, always=True)
    x = torch.randn(2, height, width, 3)
    padded = grid.pad(x).roll((-3, -3), (1, 2))
    rows, cols = grid.padded
    expected = padded.view(2, rows // 7, 7, cols // 7, 7, 3).transpose(2, 3).reshape(2, -1, 49, 3)
    assert torch.equal(grid.split(x), expected) and torch.equal(grid.merge(grid.split(x)), x)
    mask = grid.mask(torch.device("cpu"))
    assert mask is not None and mask[-1, 0, 48] == -100 and mask[-1, 0, 1] == 0


def test_a_mask_created_in_inference_mode_can_be_used_in_training():
    grid = WindowGrid.of(10, 12, 5, 2)
    with torch.inference_mode():
        grid.mask(torch.device("cpu"))
    mask = grid.mask(torch.device("cpu"))
    x = torch.zeros(1, requires_grad=True)
    (x * mask).sum().backward()


def test_relative_position_index_counts_offsets():
    index = relative_position_index(2)  # offsets -1..1 in both directions: 9 rows
    assert index.tolist() == [[4, 3, 1, 0], [5, 4, 2, 1], [7, 6, 4, 3], [8, 7, 5, 4]]


def test_tokens_are_permuted_and_their_gradients_permuted_back():
    x = torch.randn(2, 5, 3, dtype=torch.float64, requires_grad=True)
    order = torch.tensor([3, 0, 4, 1, 2])
    result = permute_tokens(x, order, order.argsort())
    assert torch.equal(result, x[:, order])
    weight = torch.randn_like(result)
    gradient = torch.autograd.grad((result * weight).sum(), x)[0]
    assert torch.equal(gradient[:, order], weight)
    assert torch.autograd.gradgradcheck(lambda t: permute_tokens(t, order, order.argsort()).square(), x)


def test_a_window_as_large_as_the_map_is_not_copied():
    x = torch.randn(2, 4, 4, 3)
    assert WindowGrid.of(4, 4, 4, 2).split(x).data_ptr() == x.data_ptr()
