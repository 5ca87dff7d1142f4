"""Position biases from a table and from a network, alone; V2's windows of pre-training are in test_swin_v2.py."""

import math

import pytest
import torch

from models.position_bias import ContinuousBias, TableBias, log_coordinates
from utils.eval_cache import keep_derived


def new(kind, window=3):
    torch.manual_seed(0)
    attention = kind()
    attention.new_bias(2, window)
    attention.reset_bias()
    return attention


def offsets(window):
    """Yields pairs of tokens with their offset in rows and columns."""
    for i in range(window**2):
        for j in range(window**2):
            yield i, j, i // window - j // window, i % window - j % window


def test_a_table_has_a_row_for_every_offset():
    attention = new(TableBias)
    table = attention.relative_position_bias_table
    assert table.shape == (25, 2) and 0.01 < table.std() < 0.03
    bias = attention.position_bias()
    for i, j, rows, cols in offsets(3):
        assert torch.equal(bias[:, i, j], table[5 * (rows + 2) + cols + 2])


def test_a_continuous_bias_is_the_network_at_the_coordinates_of_an_offset():
    attention = new(ContinuousBias)
    attention.set_pretrained_window(5)
    bias = attention.position_bias()
    for i, j, rows, cols in offsets(3):
        scaled = [math.copysign(math.log2(abs(8 * d / 4) + 1) / 3, d) for d in (rows, cols)]
        torch.testing.assert_close(bias[:, i, j], attention.cpb_mlp(torch.tensor(scaled)))
    with torch.autocast("cpu", torch.bfloat16):
        assert attention.position_bias().dtype == torch.float32
    assert set(attention.state_dict()) == {"cpb_mlp.0.weight", "cpb_mlp.0.bias", "cpb_mlp.2.weight"}


@pytest.mark.parametrize("kind", [TableBias, ContinuousBias])
def test_the_mask_is_added_for_every_head_and_what_does_not_change_is_computed_once(kind, monkeypatch):
    attention, mask = new(kind), torch.randn(4, 9, 9)
    bias, masked = attention.bias(None), attention.bias(mask)
    assert bias.shape == (1, 2, 9, 9) and masked.shape == (4, 2, 9, 9)
    assert torch.equal(masked[3, 1], attention.position_bias()[1] + mask[3])
    with torch.no_grad(), keep_derived():
        assert attention.bias(mask) is attention.bias(mask) and torch.equal(attention.bias(None), bias)


def test_coordinates_by_hand():
    table = log_coordinates(3, 0)  # offsets -2..2 over 2, times 8: -8, -4, 0, 4, 8
    assert table.shape == (25, 2)
    scaled = [-math.log2(9) / 3, -math.log2(5) / 3, 0, math.log2(5) / 3, math.log2(9) / 3]
    assert table[10:15, 1].tolist() == pytest.approx(scaled) and table[::5, 0].tolist() == pytest.approx(scaled)
    wider = log_coordinates(5, 3)  # offsets up to 4, twice as far as in pre-training
    assert wider[-1].tolist() == pytest.approx([math.log2(17) / 3] * 2)
