"""Swin-MLP by value: no other library has it."""

import pytest
import torch

from models.swin_mlp import SwinMlp
from tests.tools.builders import small


def mixed_by_hand(block, x):
    """The spatial MLP of a block written as a sum over the tokens of each window, without padding tricks.

    Args: x (H, W, C), after the norm. Token (r, c) belongs to the window of size m that starts at a multiple of m,
    less the shift; tokens outside the map are zero.
    """
    height, width, channels = x.shape
    m, heads, per_head = block.window, block.heads, channels // block.heads
    weight, bias = block.spatial_mlp.weight[:, :, 0].view(heads, m * m, m * m), block.spatial_mlp.bias.view(heads, -1)
    # a shifted window starts `shift` tokens after the multiple of m before it
    shift = [block.shift if side > m else 0 for side in (height, width)]
    out = torch.zeros_like(x)
    for row in range(height):
        for col in range(width):
            top, left = ((at - s) // m * m + s if s else at // m * m for at, s in zip((row, col), shift, strict=True))
            place = (row - top) * m + col - left
            for head in range(heads):
                part = slice(head * per_head, (head + 1) * per_head)
                total = bias[head, place].expand(per_head)
                for i in range(m * m):
                    r, c = top + i // m, left + i % m
                    if 0 <= r < height and 0 <= c < width:
                        total = total + weight[head, place, i] * x[r, c, part]
                out[row, col, part] = total
    return out


@pytest.mark.parametrize(("window", "size"), [(4, (8, 8)), (4, (8, 4)), (4, (3, 4)), (5, (10, 10)), (5, (6, 9))])
def test_a_block_mixes_the_tokens_of_each_window_per_head(window, size):
    """The first block of a stage has windows in place, the second has shifted ones, padded on all sides."""
    for block in small("swin_mlp", window_size=window).stages()[0].blocks:
        torch.nn.init.normal_(block.spatial_mlp.weight)
        torch.nn.init.normal_(block.spatial_mlp.bias)
        x = torch.randn(1, *size, 8)
        with torch.no_grad():
            after = x + mixed_by_hand(block, block.norm1(x)[0])
            expected = after + block.mlp(block.norm2(after))
            torch.testing.assert_close(block(x), expected)


def test_the_spatial_mlp_starts_from_a_truncated_normal_and_zero_biases():
    """Not from torch's default for convolutions, whose deviation here would be 0.14."""
    model = small("swin_mlp")
    blocks = [block for stage in model.stages() for block in stage.blocks]
    assert isinstance(model, SwinMlp) and len(blocks) == 4
    for block in blocks:
        weight = block.spatial_mlp.weight
        assert weight.std().item() == pytest.approx(0.02, rel=0.1) and abs(weight.mean().item()) < 0.002
        assert not block.spatial_mlp.bias.any()
