"""LayerNorm without its kernel; with it: tests/models/ops/test_kernels.py."""

import pytest
import torch
from torch import nn

from models.ops.layer_norm import LayerNorm
from models.ops.stochastic_depth import KeptSamples, add_branch

FACTORS = torch.tensor([0.0, 2.0, 2.0])


@pytest.mark.parametrize(
    ("mask", "factors"), [(None, torch.ones(3)), (FACTORS, FACTORS), (KeptSamples(torch.tensor([1, 2]), 2.0), FACTORS)]
)
def test_a_branch_gets_the_norm_of_the_samples_that_keep_it(mask, factors):
    norm, plain = LayerNorm(4), nn.LayerNorm(4)
    nn.init.normal_(norm.weight)
    plain.load_state_dict(norm.state_dict())
    x = torch.randn(3, 2, 2, 4)
    expected = x + factors.view(3, 1, 1, 1) * plain(x).square()
    torch.testing.assert_close(add_branch(x, lambda x: norm(x).square(), mask), expected)


@pytest.mark.parametrize("gradients", [True, False])
def test_the_output_has_the_type_of_matrix_products(gradients):
    x, norm = torch.randn(1, 2, 2, 4), LayerNorm(4)
    with torch.set_grad_enabled(gradients):
        expected = norm(x)
        assert expected.dtype == torch.float32
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(norm(x), expected.bfloat16()) and norm(x).dtype == torch.bfloat16


def test_hooks_are_called_with_the_output():
    norm, seen = LayerNorm(4), []
    norm.register_forward_hook(lambda module, inputs, output: seen.append(output))
    with torch.no_grad():
        assert norm(torch.randn(2, 4)) is seen[0]
