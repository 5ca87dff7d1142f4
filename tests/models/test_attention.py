"""Attention within windows against sums written out, and its position biases."""

import math

import pytest
import torch
import torch.nn.functional as F

from models.attention import log_coordinates
from models.swin import TableWindowAttention
from models.swin_moe import ContinuousWindowAttention
from models.swin_v2 import CosineWindowAttention
from utils.eval_cache import keep_derived

HEADS = 2


def new(kind, window=3, shift=0):
    torch.manual_seed(0)
    return kind(8, HEADS, window, shift)


def offsets(window):
    """Yields pairs of tokens with their offset in rows and columns."""
    for i in range(window**2):
        for j in range(window**2):
            yield i, j, i // window - j // window, i % window - j % window


def written_out(attention, x):
    """Attends over all tokens of a map of 8 x 8 at once: windows of 4 that are shifted by 2 divide its rows, and its
    columns, into groups of 2, 4 and 2, of which a token sees its own."""
    at = torch.cartesian_prod(torch.arange(8), torch.arange(8))
    group = (at + 2) // 4
    offset = (at[:, None] - at).clamp(-3, 3)
    first, second = (offset.clamp(min=0) @ torch.tensor([4, 1]), (-offset).clamp(min=0) @ torch.tensor([4, 1]))
    bias = attention.position_bias()[:, first, second]  # any two tokens of a window at this offset have its bias
    query, key, value = attention.project(x.flatten(1, 2)).unflatten(-1, (3, HEADS, -1)).transpose(1, 3).unbind(2)
    scale = attention.scale
    if isinstance(scale, torch.Tensor):
        query, key, scale = F.normalize(query, dim=-1), F.normalize(key, dim=-1), scale.view(-1, 1, 1)
    scores = scale * (query @ key.mT) + bias
    scores = scores.masked_fill((group[:, None] != group).any(-1), -math.inf)
    return attention.proj((scores.softmax(-1) @ value).transpose(1, 2).flatten(2)).view(x.shape)


@pytest.mark.parametrize("kind", [TableWindowAttention, ContinuousWindowAttention, CosineWindowAttention])
@pytest.mark.parametrize("gradients", [True, False])
def test_a_token_attends_to_those_of_its_shifted_window(kind, gradients):
    attention, x = new(kind, window=4, shift=2), torch.randn(2, 8, 8, 8)
    for parameter in attention.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    with torch.set_grad_enabled(gradients):
        torch.testing.assert_close(attention(x), written_out(attention, x), atol=1e-5, rtol=1e-5)


def test_a_map_that_windows_do_not_divide_is_padded_with_zeros():
    attention, x = new(TableWindowAttention, window=4), torch.randn(1, 6, 7, 8)
    torch.testing.assert_close(attention(x), attention(F.pad(x, (0, 0, 0, 1, 0, 2)))[:, :6, :7])


def test_the_weights_drop_out_in_training():
    attention, x = TableWindowAttention(8, HEADS, 4, attn_drop=0.9), torch.randn(1, 4, 4, 8)
    assert not torch.equal(attention(x), attention(x))
    assert torch.equal(attention.eval()(x), attention(x))


def test_parameters_keep_their_order():
    """The state of an optimizer refers to them by position."""
    layers = ["qkv.weight", "qkv.bias", "proj.weight", "proj.bias"]
    network = ["cpb_mlp.0.weight", "cpb_mlp.0.bias", "cpb_mlp.2.weight"]
    assert list(new(TableWindowAttention).state_dict()) == ["relative_position_bias_table", *layers]
    assert list(new(ContinuousWindowAttention).state_dict()) == [*network, *layers]
    layers.remove("qkv.bias")
    assert list(new(CosineWindowAttention).state_dict()) == ["logit_scale", "q_bias", "v_bias", *network, *layers]


def test_a_table_has_a_row_for_every_offset():
    attention = new(TableWindowAttention)
    table = attention.relative_position_bias_table
    assert table.shape == (25, 2) and 0.01 < table.std() < 0.03
    bias = attention.position_bias()
    for i, j, rows, cols in offsets(3):
        assert torch.equal(bias[:, i, j], table[5 * (rows + 2) + cols + 2])


def test_a_continuous_bias_is_the_network_at_the_coordinates_of_an_offset():
    attention = new(ContinuousWindowAttention)
    attention.set_pretrained_window(5)
    bias = attention.position_bias()
    for i, j, rows, cols in offsets(3):
        scaled = [math.copysign(math.log2(abs(8 * d / 4) + 1) / 3, d) for d in (rows, cols)]
        torch.testing.assert_close(bias[:, i, j], attention.cpb_mlp(torch.tensor(scaled)))
    with torch.autocast("cpu", torch.bfloat16):
        assert attention.position_bias().dtype == torch.float32


@pytest.mark.parametrize("kind", [TableWindowAttention, ContinuousWindowAttention])
def test_the_mask_is_added_for_every_head_and_what_does_not_change_is_computed_once(kind):
    attention, mask = new(kind), torch.randn(4, 9, 9)
    bias, masked = attention.bias(), attention.bias(mask)
    assert bias.shape == (1, 2, 9, 9) and masked.shape == (4, 2, 9, 9)
    assert torch.equal(masked[3, 1], attention.position_bias()[1] + mask[3])
    with torch.no_grad(), keep_derived():
        assert attention.bias(mask) is attention.bias(mask) and torch.equal(attention.bias(), bias)


def test_coordinates_by_hand():
    table = log_coordinates(3, 0)  # offsets -2..2 over 2, times 8: -8, -4, 0, 4, 8
    assert table.shape == (25, 2)
    scaled = [-math.log2(9) / 3, -math.log2(5) / 3, 0, math.log2(5) / 3, math.log2(9) / 3]
    assert table[10:15, 1].tolist() == pytest.approx(scaled) and table[::5, 0].tolist() == pytest.approx(scaled)
    wider = log_coordinates(5, 3)  # offsets up to 4, twice as far as in pre-training
    assert wider[-1].tolist() == pytest.approx([math.log2(17) / 3] * 2)
