"""Class activation maps and attention rollout, against plain computations."""

import pytest
import torch

from models.explain import attention_rollout, class_activation
from models.ops.attend import record_weights
from tests.tools.builders import randomize, small
from tests.tools.errors import raises
from utils.errors import ConfigError


def test_a_class_activation_map_is_grad_cam_of_the_last_map():
    model, images = randomize(small()), torch.randn(3, 3, 32, 32)
    classes = [4, 0, 2]
    maps = model.forward_features(images).detach().requires_grad_()
    logits = model.forward_head(maps)
    (gradient,) = torch.autograd.grad(logits[range(3), classes].sum(), maps)
    expected = (maps * gradient.mean((1, 2), keepdim=True)).sum(-1).relu()
    expected = expected / expected.amax((1, 2), keepdim=True)
    torch.testing.assert_close(class_activation(model, images, classes), expected.detach())


def test_a_model_without_a_head_has_no_evidence():
    with raises(ConfigError, "--explain", "head"):
        class_activation(small(num_classes=0), torch.randn(1, 3, 32, 32), [0])


@pytest.mark.parametrize("family", ["swin", "swinv2"])
@pytest.mark.parametrize("size", [(32, 32), (24, 40)])
def test_rollout_is_a_distribution_over_the_tokens(family, size):
    model = randomize(small(family)).eval()
    found = attention_rollout(model, torch.randn(2, 3, *size))
    assert found.shape == (2, size[0] // 2, size[1] // 2) and (found >= 0).all()
    if size == (32, 32):  # no padding, which would take its part
        torch.testing.assert_close(found.sum((1, 2)), torch.ones(2))
    assert found.std() > 0


def test_rollout_equals_the_product_of_the_matrices_of_one_stage():
    """A single window, where the matrices over all tokens are the weights themselves."""
    model = randomize(small(depths=(3,), num_heads=(2,), window_size=4, img_size=8)).eval()
    images, recorded = torch.randn(1, 3, 8, 8), []
    with torch.no_grad(), record_weights(recorded):
        model(images)
    assert [tuple(weights.shape) for weights in recorded] == [(1, 1, 2, 16, 16)] * 3
    product = torch.eye(16)
    for weights in recorded:
        product = (torch.eye(16) + weights[0, 0].mean(0)) / 2 @ product
    torch.testing.assert_close(attention_rollout(model, images).flatten(), product.mean(0))


def test_without_attention_there_is_nothing_to_roll_out():
    with raises(ConfigError, "--explain", "attention"):
        attention_rollout(small("swin_mlp"), torch.randn(1, 3, 32, 32))


def test_weights_are_recorded_in_the_context_only():
    model, recorded = small().eval(), []
    with record_weights(recorded):
        pass
    model(torch.randn(1, 3, 32, 32))
    assert not recorded
