"""The window attention kernel against the same computation in float64, on the CPU by Triton's interpreter."""

import pytest
import torch
import torch.nn.functional as F

from models.ops.windows import WindowGrid

pytest.importorskip("triton")
CUDA = torch.cuda.is_available()
HEADS, WIDTH, SCALE = 2, 16, 0.25
LIMITS = {torch.float32: 1e-4, torch.bfloat16: 1e-2, torch.float16: 1e-2}


def inputs(grid, dtype, cosine):
    torch.manual_seed(0)
    device = "cuda" if CUDA else "cpu"
    qkv = torch.randn(2, *grid.padded, 3 * HEADS * WIDTH, device=device).to(dtype)
    bias = torch.randn(HEADS, grid.window**2, grid.window**2, device=device)
    scales = [torch.tensor([10.0, 30.0], device=device)] if cosine else []
    return [x.requires_grad_() for x in (qkv, bias, *scales)]


def in_float64(qkv, bias, scales, grid):
    query, key, value = (x.transpose(2, 3) for x in grid.split(qkv).unflatten(-1, (3, HEADS, WIDTH)).unbind(3))
    scale = SCALE if scales is None else scales.view(-1, 1, 1)
    if scales is not None:
        query, key = F.normalize(query, dim=-1), F.normalize(key, dim=-1)
    mask = grid.mask(qkv.device)
    scores = scale * query @ key.mT + bias + (0 if mask is None else mask[:, None])
    return grid.merge((scores.softmax(-1) @ value).transpose(2, 3).flatten(3))


def deviation(values, reference):
    return ((values.double() - reference).norm() / reference.norm()).item()


@pytest.mark.seconds
@pytest.mark.parametrize("cosine", [False, True], ids=["scaled", "cosine"])
@pytest.mark.parametrize("dtype", LIMITS, ids=str)
@pytest.mark.parametrize("sizes", [(8, 8, 4, 2), (14, 7, 7, 3), (16, 16, 8, 4), (7, 14, 7, 0)], ids=str)
def test_output_and_every_gradient(sizes, dtype, cosine):
    """Shifted both ways, one way (a side of a single window), and not at all."""
    from models.ops.window_kernel import FusedWindowAttention

    grid = WindowGrid.of(*sizes)
    given = inputs(grid, dtype, cosine)
    qkv, bias, scales = (*given, None)[:3]
    weight = torch.randn(2, *grid.padded, HEADS * WIDTH, device=qkv.device).to(dtype).float()
    out = FusedWindowAttention.apply(qkv, bias, scales, SCALE, grid.window, grid.shift_h, grid.shift_w)
    gradients = torch.autograd.grad((out.float() * weight).sum(), given)
    exact = [x.detach().double().requires_grad_() for x in given]
    expected = in_float64(*(*exact, None)[:3], grid)
    assert out.dtype == dtype and deviation(out, expected) < LIMITS[dtype]
    for ours, theirs in zip(gradients, torch.autograd.grad((expected * weight).sum(), exact), strict=True):
        assert deviation(ours, theirs) < LIMITS[dtype]


def test_a_query_of_zeros_has_finite_gradients():
    """As a padded token without biases has."""
    from models.ops.window_kernel import FusedWindowAttention

    grid = WindowGrid.of(4, 4, 4, 0)
    qkv, bias, scales = inputs(grid, torch.float32, True)
    with torch.no_grad():
        qkv[:, 0] = 0
    FusedWindowAttention.apply(qkv, bias, scales, SCALE, 4, 0, 0).sum().backward()
    assert all(x.grad.isfinite().all() for x in (qkv, bias, scales))
