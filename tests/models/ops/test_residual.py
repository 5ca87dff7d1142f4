"""Pre-norm residual branches without kernels; with them: tests/models/ops/test_kernels.py."""

import pytest
import torch
from torch import nn

from models.ops.residual import add_normed_branch
from models.ops.stochastic_depth import KeptSamples

FACTORS = torch.tensor([0.0, 2.0, 2.0])


@pytest.mark.parametrize(
    ("kept", "factors"), [(None, torch.ones(3)), (FACTORS, FACTORS), (KeptSamples(torch.tensor([1, 2]), 2.0), FACTORS)]
)
def test_a_branch_gets_the_norm_of_the_samples_that_keep_it(kept, factors):
    norm = nn.LayerNorm(4)
    nn.init.normal_(norm.weight)
    x = torch.randn(3, 2, 2, 4)
    expected = x + factors.view(3, 1, 1, 1) * norm(x).square()
    torch.testing.assert_close(add_normed_branch(x, norm, torch.square, kept), expected)


def test_a_branch_gets_the_type_of_matrix_products():
    seen = []
    with torch.autocast("cpu", torch.bfloat16):
        out = add_normed_branch(torch.randn(1, 2, 2, 4), nn.LayerNorm(4), lambda x: seen.append(x.dtype) or x, None)
    assert seen == [torch.bfloat16] and out.dtype == torch.float32
