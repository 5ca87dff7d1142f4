"""Stochastic depth: the same mathematics as a mask, without computing what is dropped."""

import pytest
import torch
from timm.layers import DropPath
from torch import nn

from models.ops.stochastic_depth import KeptSamples, add_branch, as_factors, draw_masks
from models.registry import build_model
from tests.tools.builders import small

CPU = torch.device("cpu")


def test_without_stochastic_depth_a_branch_is_added():
    x = torch.randn(3, 2)
    assert draw_masks([0.0, 0.0], 3, CPU) == [None, None]
    assert torch.equal(add_branch(x, lambda y: 2 * y, None), 3 * x)


@pytest.mark.parametrize("form", ["samples", "factors"])
def test_outputs_and_gradients_equal_those_of_timm(form, monkeypatch):
    keep, rate = torch.tensor([1.0, 0, 1, 1, 0, 1]), 0.25
    monkeypatch.setattr(torch.Tensor, "bernoulli_", lambda self, p: self.copy_(keep.view(self.shape)))
    branch, peer = nn.Linear(5, 5), DropPath(rate).train()
    x = torch.randn(6, 4, 5, requires_grad=True)
    mask = KeptSamples(keep.nonzero().flatten(), 1 / (1 - rate)) if form == "samples" else keep / (1 - rate)
    weight = torch.randn_like(x)
    results = []
    for y in (add_branch(x, branch, mask), x + peer(branch(x))):
        results.append([y, *torch.autograd.grad((y * weight).sum(), [x, branch.weight, branch.bias])])
    torch.testing.assert_close(*results)


def test_a_branch_sees_the_samples_that_keep_it_only():
    rows = []
    mask = KeptSamples(torch.tensor([1, 4]), 2.0)
    out = add_branch(torch.ones(5, 3), lambda y: rows.append(len(y)) or y, mask)
    assert rows == [2] and out[:, 0].tolist() == [1, 3, 1, 1, 3]


def test_kept_samples_as_factors_give_the_same_result():
    x, mask = torch.randn(5, 3), KeptSamples(torch.tensor([1, 4]), 2.0)
    assert as_factors(mask, x).tolist() == [0, 2, 0, 0, 2] and as_factors(None, x) is None
    factors = torch.tensor([0.0, 1.5])
    assert as_factors(factors, x) is factors
    assert torch.equal(add_branch(x, torch.square, mask), add_branch(x, torch.square, as_factors(mask, x)))


def test_samples_are_drawn_once_per_forward_pass(monkeypatch):
    draws = []
    rand = torch.rand
    monkeypatch.setattr(torch, "rand", lambda *size: draws.append(size) or rand(*size))
    for family in ("swin", "swinv2", "swin_mlp", "swin_moe"):
        model = small(family, drop_path_rate=0.3)
        model(torch.randn(4, 3, 32, 32))
        assert draws == [(2 * len(model.feature_info) * 2, 4)]
        model.eval()(torch.randn(4, 3, 32, 32))
        assert len(draws) == 1
        draws.clear()


def test_every_branch_is_kept_at_the_rate_of_the_linear_rule():
    """10,000 draws; within 3 standard errors."""
    torch.manual_seed(0)
    model = build_model("swin", drop_path_rate=0.2, embed_dim=12, num_heads=(1, 2, 3, 4), num_classes=0).train()
    rates = [rate for stage in model.stages() for rate in stage.rates()]
    assert rates == pytest.approx([0.2 * (i // 2) / 11 for i in range(24)])
    count = 10_000
    for mask, rate in zip(draw_masks(rates, count, CPU), rates, strict=True):
        if not rate:
            assert mask is None
            continue
        error = (rate * (1 - rate) / count) ** 0.5
        assert abs(len(mask.indices) / count - (1 - rate)) < 3 * error
        assert mask.scale == pytest.approx(1 / (1 - rate))


def test_a_branch_that_no_sample_keeps_still_takes_part_in_the_backward_pass():
    branch, x = nn.Linear(4, 4), torch.randn(1, 4)
    torch.manual_seed(0)
    (mask,) = draw_masks([0.999], 1, CPU)
    assert mask.indices.tolist() == [0] and mask.scale == 0.0
    out = add_branch(x, branch, mask)
    assert torch.equal(out, x)
    out.sum().backward()
    assert branch.weight.grad is not None and torch.equal(branch.weight.grad, torch.zeros(4, 4))


def test_frozen_stages_drop_nothing():
    model = small("swin", drop_path_rate=0.5)
    model.freeze(1)
    rates = [stage.rates() for stage in model.train().stages()]
    assert not any(rates[0]) and all(rates[1])


@pytest.mark.seconds
@pytest.mark.parametrize(
    ("family", "batch", "rate"), [("swin", 4, 0.5), ("swin", 1, 0.9), ("swinv2", 1, 0.9), ("swin_moe", 4, 0.5)]
)
def test_compiled_it_has_a_fixed_shape_and_the_same_values(family, batch, rate):
    """Batch 1 and rate 0.9 too, where some branch is kept by no sample."""
    model = small(family, drop_path_rate=rate)
    images = torch.randn(batch, 3, 32, 32)
    gradients = []
    for run in (model, torch.compile(model, backend="aot_eager", fullgraph=True)):
        torch.manual_seed(3)
        model.zero_grad()
        run(images).square().sum().backward()
        gradients.append([p.grad.clone() for p in model.parameters()])
    torch.testing.assert_close(*gradients, atol=1e-5, rtol=1e-4)
    torch.compiler.reset()
