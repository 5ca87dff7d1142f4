"""Every form of attention against sums written out."""

import pytest
import torch
import torch.nn.functional as F

from models.ops.attend import attend

SCALE = 0.3


def operands(windows=3, requires_grad=False, dtype=torch.float64):
    torch.manual_seed(0)
    qkv = torch.randn(2, 3, 4, 3 * 2 * 5, dtype=dtype, requires_grad=requires_grad)  # (B, windows, N, 3 * heads * d)
    bias = torch.randn(windows, 2, 4, 4, dtype=torch.float32, requires_grad=requires_grad)
    return qkv, bias


def written_out(qkv, bias, scale=SCALE):
    heads = bias.shape[1]
    query, key, value = qkv.unflatten(-1, (3, heads, -1)).transpose(2, 4).unbind(3)  # (B, windows, heads, N, d)
    if isinstance(scale, torch.Tensor):
        query, key, scale = F.normalize(query, dim=-1), F.normalize(key, dim=-1), scale.view(-1, 1, 1)
    scores = scale * (query @ key.transpose(-2, -1)) + bias
    return (scores.softmax(-1) @ value).transpose(2, 3).flatten(3)


@pytest.mark.parametrize("scale", [SCALE, torch.tensor([2.0, 30.0])], ids=["scaled", "cosine"])
@pytest.mark.parametrize("windows", [1, 3])
@pytest.mark.parametrize("form", ["with gradients", "without", "dropout"])
def test_attention_equals_the_sum_written_out(form, windows, scale):
    qkv, bias = operands(windows)
    expected = written_out(qkv, bias, scale)
    with torch.set_grad_enabled(form != "without"):
        result = attend(qkv, bias, scale, dropout=1e-9 if form == "dropout" else 0.0)
    assert result.shape == (2, 3, 4, 10)
    tolerance = 1e-6 if scale is SCALE else 1e-5  # cosines are float32
    torch.testing.assert_close(result, expected, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("form", ["dropout", "compiled"])
def test_cosines_are_scored_in_float32_under_autocast(form):
    """With the largest scale of SwinV2, in bfloat16 a score would be off by up to 0.4."""
    torch.manual_seed(0)
    qkv, bias, scale = torch.randn(1, 2, 9, 3 * 2 * 16).bfloat16(), torch.randn(1, 2, 9, 9), torch.tensor([100.0, 100])
    expected = written_out(qkv.double(), bias, scale)
    run = torch.compile(attend, backend="eager", fullgraph=True) if form == "compiled" else attend
    with torch.autocast("cpu", torch.bfloat16):
        result = run(qkv, bias, scale, 1e-9 if form == "dropout" else 0.0)
    assert (result - expected).norm() < 1e-2 * expected.norm()


@pytest.mark.parametrize("windows", [1, 3])
def test_gradients_equal_those_of_the_sum_written_out(windows):
    qkv, bias = operands(windows, requires_grad=True)
    weight = torch.randn(2, 3, 4, 10, dtype=torch.float64)
    expected = torch.autograd.grad((written_out(qkv, bias) * weight).sum(), [qkv, bias])
    result = torch.autograd.grad((attend(qkv, bias, SCALE) * weight).sum(), [qkv, bias])
    torch.testing.assert_close(result, expected, atol=1e-6, rtol=1e-5)


def test_cosines_have_gradients_of_query_key_and_scale():
    qkv, bias = operands(requires_grad=True, dtype=torch.float32)
    scale, weight = torch.tensor([2.0, 30.0], requires_grad=True), torch.randn(2, 3, 4, 10)
    expected = torch.autograd.grad((written_out(qkv, bias, scale) * weight).sum(), [qkv, bias, scale])
    result = torch.autograd.grad((attend(qkv, bias, scale) * weight).sum(), [qkv, bias, scale])
    torch.testing.assert_close(result, expected, atol=1e-4, rtol=1e-4)


def test_scores_in_float32_with_values_in_bfloat16():
    """As Swin V2 has them under mixed precision."""
    qkv, bias = operands(dtype=torch.float32, requires_grad=True)
    qkv, scale = qkv.bfloat16(), torch.tensor([2.0, 30.0])
    for context in (torch.enable_grad(), torch.no_grad()):
        with context, torch.autocast("cpu", torch.bfloat16):
            result = attend(qkv, bias, scale)
        assert result.dtype == torch.bfloat16
        torch.testing.assert_close(result.float(), written_out(qkv.float(), bias, scale), atol=2e-2, rtol=2e-2)


def test_weights_take_the_memory_of_the_scores():
    qkv, bias = operands(requires_grad=True)
    sizes = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):
        attend(qkv, bias, SCALE)
    assert sorted(sizes) == [2 * 3 * 2 * 4 * 4, 240, 240, 240]  # weights, query, key, value
