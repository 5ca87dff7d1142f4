"""Linear layers and MLPs in every form, against plain calls of the layers."""

import pytest
import torch
import torch.nn.functional as F

from models.layers import Mlp
from models.ops import linear
from models.ops.linear import Linear, laid_out_for
from utils.eval_cache import keep_derived


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(5, 6), (2, 3, 4, 6), (5000, 6)])
def test_the_mlp_that_recomputes_equals_its_layers(shape, bias):
    """More rows than one part has, and gradients of all that it takes."""
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    mlp = Mlp(6, 24, fc2_bias=bias).double()
    names = ["fc1.weight", "fc1.bias", "fc2.weight", *(["fc2.bias"] if bias else [])]
    assert [name for name, _ in mlp.named_parameters()] == names
    leaves = [x, *(mlp.get_parameter(name) for name in names)]
    weight = torch.randn(shape, dtype=torch.float64)
    plain = mlp.fc2(F.gelu(mlp.fc1(x)))
    torch.testing.assert_close(mlp(x), plain)
    expected = torch.autograd.grad((plain * weight).sum(), leaves)
    torch.testing.assert_close(torch.autograd.grad((mlp(x) * weight).sum(), leaves), expected)


def test_the_mlp_remembers_one_hidden_tensor():
    sizes = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):
        Mlp(6, 24)(torch.randn(10, 6, requires_grad=True))
    assert sorted(sizes) == [60, 144, 144, 240]  # input, two matrices, hidden


@pytest.mark.parametrize("autocast", [False, True])
def test_without_gradients_the_mlp_gives_the_same(autocast):
    x, mlp = torch.randn(7, 6), Mlp(6, 24).eval()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        expected = mlp(x)
        with torch.no_grad():
            result = mlp(x)
    assert result.dtype == expected.dtype
    torch.testing.assert_close(result, expected, atol=1e-2 if autocast else 1e-6, rtol=1e-2 if autocast else 1e-5)


@pytest.mark.parametrize("bias", [True, False])
def test_without_gradients_product_bias_and_gelu_are_one_call(bias, monkeypatch):
    calls = []
    monkeypatch.setattr(F, "linear", lambda *a: calls.append(a))
    x, layer = torch.randn(3, 4), Linear(4, 5, bias)
    product = x @ layer.weight.T + (layer.bias if bias else 0)
    with torch.no_grad():
        torch.testing.assert_close(layer(x), product)
        torch.testing.assert_close(layer(x, gelu=True), F.gelu(product))
        torch.testing.assert_close(layer(x, bias=torch.ones(5)), x @ layer.weight.T + 1)
    assert calls == []


def test_weights_are_converted_once_in_an_evaluation():
    x, layer = torch.randn(3, 4), Linear(4, 5).eval()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        first = layer(x)
        layer.weight.data.zero_()  # leaves no trace
        assert torch.equal(layer(x), layer.bias.bfloat16().expand(3, 5)) and first.dtype == torch.bfloat16
        with keep_derived():
            layer(x)
            layer.weight.data.add_(1)
            assert torch.equal(layer(x), layer.bias.bfloat16().expand(3, 5))


def test_weights_are_laid_out_once_in_an_evaluation(monkeypatch):
    layer, x = Linear(4, 5).eval(), torch.randn(3, 4)
    reordered = []
    monkeypatch.setattr(linear, "laid_out_for", lambda *a: reordered.append(a) or laid_out_for(*a))
    expected = F.linear(x, layer.weight, layer.bias).detach()
    with torch.no_grad():
        torch.testing.assert_close(layer(x), expected)
        assert not reordered  # nothing to keep it for
        with keep_derived():
            for rows in (3, 3, 1):
                torch.testing.assert_close(layer(x[:rows]), expected[:rows])
            assert [len(each) for each in reordered] == [3]
            assert layer(x[:0]).shape == (0, 5)  # in another form, with another layout
            with torch.autocast("cpu", torch.bfloat16):
                torch.testing.assert_close(layer(x).float(), expected, atol=0.05, rtol=0.05)
            torch.testing.assert_close(layer(x), expected)


def test_a_layer_of_another_type_and_an_empty_batch():
    layer = Linear(4, 5).double()
    with torch.no_grad():
        torch.testing.assert_close(
            layer(torch.ones(2, 4).double(), gelu=True), F.gelu(layer(torch.ones(2, 4).double()))
        )
        assert Linear(4, 5)(torch.ones(0, 4)).shape == (0, 5)


def test_a_torch_without_the_private_operators_uses_public_ones(monkeypatch):
    layer, x = Linear(6, 4), torch.randn(2, 6)
    monkeypatch.setattr(linear, "ONEDNN_OPERATORS", ("_linear_pointwise", "_gone"))
    monkeypatch.setattr(torch.ops.mkldnn, "_linear_pointwise", None)
    linear._supports_onednn.cache_clear()
    try:
        with torch.no_grad(), keep_derived():
            assert torch.equal(layer(x), F.linear(x, layer.weight, layer.bias))
    finally:
        linear._supports_onednn.cache_clear()


def test_a_processor_without_kernels_for_bfloat16_computes_in_torch(monkeypatch):
    layer, x = Linear(6, 4).bfloat16(), torch.randn(2, 6).bfloat16()
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    monkeypatch.setattr(torch.ops.mkldnn, "_linear_pointwise", None)
    linear._supports_onednn.cache_clear()
    try:
        with torch.no_grad():
            assert torch.equal(layer(x), F.linear(x, layer.weight, layer.bias))
    finally:
        linear._supports_onednn.cache_clear()
