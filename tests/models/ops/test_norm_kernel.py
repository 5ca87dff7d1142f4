"""The LayerNorm kernel against the same computation in float64, on the CPU by Triton's interpreter."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

pytest.importorskip("triton")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 1e-4), (torch.bfloat16, 1e-2), (torch.float16, 1e-2)])
@pytest.mark.parametrize(("channels", "main_dtype"), [(24, torch.float32), (96, torch.float32), (96, None)])
def test_it_is_the_norm_in_the_type_that_is_asked_for(channels, main_dtype, dtype, limit):
    """Of a map whose rows do not fill the last tile, with any strides."""
    from models.ops.norm_kernel import layer_norm

    torch.manual_seed(0)
    x = (torch.randn(3, 7, 5, channels, device=DEVICE) * 2 + 1).to(main_dtype or dtype).transpose(1, 2)
    norm = nn.LayerNorm(channels, device=DEVICE)
    nn.init.normal_(norm.weight), nn.init.normal_(norm.bias)
    with torch.no_grad():
        out = layer_norm(x, norm, dtype)
        expected = F.layer_norm(x.double(), (channels,), norm.weight.double(), norm.bias.double(), norm.eps)
    assert out.dtype == dtype and out.shape == x.shape
    assert (out.double() - expected).norm() < limit * expected.norm()
