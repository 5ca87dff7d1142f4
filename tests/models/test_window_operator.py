"""The operator of the kernel of window attention."""

import pytest
import torch

pytest.importorskip("triton")


@pytest.mark.seconds
def test_it_is_what_autograd_and_the_compiler_expect():
    from models.window_operator import window_attention

    qkv, bias = torch.randn(2, 8, 8, 3 * 2 * 16), torch.randn(2, 16, 16)
    for scales in (None, torch.tensor([10.0, 30.0], requires_grad=True)):
        given = (qkv.requires_grad_(), bias.requires_grad_(), scales, 0.25, 4, 2, 2)
        torch.library.opcheck(window_attention, given)
