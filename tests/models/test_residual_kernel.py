"""The kernels of residual branches beside the same mathematics in float64; on the CPU by Triton's interpreter."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from models.stochastic_depth import Samples

pytest.importorskip("triton")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
LIMITS = {torch.float32: 1e-4, torch.bfloat16: 1e-2, torch.float16: 1e-2}
CHOICES = {
    "all": None,
    "some": [0.0, 1.25, 1.25, 0.0, 1.25],
    "none": [0.0, 0.0, 0.0, 0.0, 0.0],  # the first one runs, with factor 0
}


def chosen(factors):
    keep = torch.tensor(factors, device=DEVICE) != 0
    if not keep.any():
        keep[0] = True
    return Samples.of(keep, max(factors))


def deviation(values, reference):
    return ((values.double() - reference).norm() / reference.norm().clamp(min=1e-12)).item()


@pytest.mark.parametrize("choice", CHOICES)
@pytest.mark.parametrize("dtype", LIMITS, ids=str)
@pytest.mark.parametrize(("channels", "main_dtype"), [(24, torch.float32), (96, torch.float32), (96, None)])
def test_a_branch_between_the_kernels(channels, main_dtype, dtype, choice):
    """Output and every gradient of x + factor * product(norm(x))."""
    from models.residual_kernel import add_scaled, norm_of_chosen

    torch.manual_seed(0)
    kept = None if CHOICES[choice] is None else chosen(CHOICES[choice])
    x = (torch.randn(5, 7, 3, channels, device=DEVICE) * 2 + 1).to(main_dtype or dtype)
    norm = nn.LayerNorm(channels).to(DEVICE)
    nn.init.normal_(norm.weight), nn.init.normal_(norm.bias)
    matrix = (torch.randn(channels, channels, device=DEVICE) / channels**0.5).to(dtype).float()
    weight = torch.randn_like(x).float()
    given = [x.requires_grad_(), norm.weight, norm.bias]

    normed, main = norm_of_chosen(x, norm, kept, dtype)
    assert normed.dtype == dtype and len(normed) == (5 if kept is None else len(kept.numbers))
    branch = (normed.float() @ matrix).to(dtype)
    out = main + branch if kept is None else add_scaled(main, branch, kept)
    gradients = torch.autograd.grad((out * weight).sum(), given)

    exact = [t.detach().double().requires_grad_() for t in given]
    factors = 1.0 if kept is None else kept.factors.double().view(-1, 1, 1, 1)
    expected = exact[0] + factors * (F.layer_norm(exact[0], (channels,), *exact[1:]) @ matrix.double())
    assert deviation(out, expected) < LIMITS[dtype]
    for ours, theirs in zip(gradients, torch.autograd.grad((expected * weight).sum(), exact), strict=True):
        assert deviation(ours, theirs) < LIMITS[dtype]
