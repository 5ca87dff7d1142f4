"""Every form of attention against sums written out."""

import pytest
import torch
import torch.nn.functional as F

from models.ops.attend import attend

SCALE = 0.3


def operands(windows=3, requires_grad=False, dtype=torch.float64):
    torch.manual_seed(0)
    packed = torch.randn(2, 3, 4, 3, 2, 5, dtype=dtype, requires_grad=requires_grad)  # (B, windows, N, 3, heads, d)
    bias = torch.randn(windows, 2, 4, 4, dtype=torch.float32, requires_grad=requires_grad)
    return packed, bias


def written_out(packed, bias):
    query, key, value = packed.transpose(2, 4).unbind(3)  # (B, windows, heads, N, d)
    scores = SCALE * query @ key.transpose(-2, -1) + bias
    return (scores.softmax(-1) @ value).transpose(2, 3).flatten(3)


@pytest.mark.parametrize("windows", [1, 3])
@pytest.mark.parametrize("form", ["with gradients", "without", "dropout"])
def test_attention_equals_the_sum_written_out(form, windows):
    packed, bias = operands(windows)
    expected = written_out(packed, bias)
    with torch.set_grad_enabled(form != "without"):
        result = attend(*packed.unbind(3), bias, SCALE, dropout=1e-9 if form == "dropout" else 0.0)
    assert result.shape == (2, 3, 4, 10)
    torch.testing.assert_close(result, expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("form", ["dropout", "compiled"])
def test_cosines_are_scored_in_float32_under_autocast(form):
    """With the largest scale of SwinV2, in bfloat16 a score would be off by up to 0.4."""
    torch.manual_seed(0)
    query, key = (F.normalize(torch.randn(1, 2, 9, 2, 16), dim=-1) * scale for scale in (100, 1))
    value, bias = torch.randn(1, 2, 9, 2, 16), torch.randn(1, 2, 9, 9)
    expected = attend(query, key, value, bias, 1.0)
    run = torch.compile(attend, backend="eager", fullgraph=True) if form == "compiled" else attend
    with torch.autocast("cpu", torch.bfloat16):
        result = run(query, key, value.bfloat16(), bias, 1.0, 1e-9 if form == "dropout" else 0.0)
    assert (result - expected).norm() < 1e-2 * expected.norm()


@pytest.mark.parametrize("windows", [1, 3])
def test_gradients_equal_those_of_the_sum_written_out(windows):
    packed, bias = operands(windows, requires_grad=True)
    weight = torch.randn(2, 3, 4, 10, dtype=torch.float64)
    expected = torch.autograd.grad((written_out(packed, bias) * weight).sum(), [packed, bias])
    result = torch.autograd.grad((attend(*packed.unbind(3), bias, SCALE) * weight).sum(), [packed, bias])
    torch.testing.assert_close(result, expected, atol=1e-6, rtol=1e-5)


def test_scores_in_float32_with_values_in_bfloat16():
    """As Swin V2 has them under mixed precision."""
    packed, bias = operands(dtype=torch.float32, requires_grad=True)
    query, key, value = packed.unbind(3)
    for context in (torch.enable_grad(), torch.no_grad()):
        with context, torch.autocast("cpu", torch.bfloat16):
            result = attend(query, key, value.bfloat16(), bias, SCALE)
        assert result.dtype == torch.bfloat16
        torch.testing.assert_close(result.float(), written_out(packed, bias), atol=2e-2, rtol=2e-2)


def test_weights_take_the_memory_of_the_scores():
    packed, bias = operands(requires_grad=True)
    sizes = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):
        attend(*packed.unbind(3), bias, SCALE)
    assert sorted(sizes) == [2 * 3 * 2 * 4 * 4, 240, 240, 240]  # weights, query, key, value
