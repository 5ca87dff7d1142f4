"""Every parameter in exactly one group, with the decay and the rate it must have."""

from dataclasses import replace

import pytest
import torch

from configs.schema import KEYS
from models.registry import build_model
from tests.tools.builders import SMALL
from utils.training.optim import (
    OPTIMIZERS,
    OptimizerOptions,
    build_optimizer,
    describe_groups,
    parameter_groups,
    set_learning_rate,
    slow_backbone,
    step_if_finite,
)


@pytest.fixture
def model():
    return build_model("swin", **SMALL, num_classes=5, ape=True)


@pytest.mark.parametrize("layer_decay", [1.0, 0.5])
@pytest.mark.parametrize("weight_decay", [0.05, 0.0])
def test_every_parameter_is_in_one_group(model, layer_decay, weight_decay):
    groups = parameter_groups(model, weight_decay, layer_decay)
    members = [id(p) for g in groups for p in g["params"]]
    assert sorted(members) == sorted(id(p) for p in model.parameters())
    assert all({"weight_decay", "lr_scale"} <= g.keys() for g in groups)


@pytest.mark.parametrize("layer_decay", [1.0, 0.5])
def test_weight_decay_acts_on_matrices_only(model, layer_decay):
    groups = parameter_groups(model, 0.05, layer_decay)
    decayed = {id(p) for g in groups if g["weight_decay"] == 0.05 for p in g["params"]}
    kept = {id(p) for g in groups if g["weight_decay"] == 0.0 for p in g["params"]}
    for name, p in model.named_parameters():
        is_table = name.endswith(("relative_position_bias_table", "absolute_pos_embed"))
        assert (id(p) in decayed) == (p.ndim > 1 and not is_table), name
        assert (id(p) in kept) == (p.ndim == 1 or is_table), name
    assert "parameters in 19 tensors, none on" in describe_groups(groups)


def test_layer_decay_counts_down_from_the_head(model):
    scale = {id(p): g["lr_scale"] for g in parameter_groups(model, 0.05, 0.5) for p in g["params"]}
    scales = {name: scale[id(p)] for name, p in model.named_parameters()}
    assert scales["head.weight"] == 1.0
    assert scales["layers.1.blocks.1.mlp.fc1.weight"] == scales["norm.bias"] == 0.5
    assert scales["layers.0.blocks.1.mlp.fc1.weight"] == 0.125
    assert scales["layers.1.blocks.0.mlp.fc1.weight"] == scales["layers.0.downsample.norm.weight"] == 0.25
    assert scales["patch_embed.proj.weight"] == scales["absolute_pos_embed"] == 0.5**5


def test_the_rule_of_simmim_counts_position_embedding_norm_and_mergings_otherwise(model):
    both = [parameter_groups(model, 0.05, 0.5, rule) for rule in ("timm", "simmim")]
    timm, simmim = ({id(p): g["lr_scale"] for g in groups for p in g["params"]} for groups in both)
    assert timm.keys() == simmim.keys()
    different = {name for name, p in model.named_parameters() if timm[id(p)] != simmim[id(p)]}
    merging = {f"layers.0.downsample.{name}" for name in ("reduction.weight", "norm.weight", "norm.bias")}
    assert different == {"absolute_pos_embed", "norm.weight", "norm.bias", *merging}
    assert simmim[id(model.absolute_pos_embed)] == simmim[id(model.norm.weight)] == 1.0


def test_frozen_parameters_are_in_no_group(model):
    model.patch_embed.requires_grad_(False)
    members = {id(p) for g in parameter_groups(model, 0.05, 1.0) for p in g["params"]}
    assert not members & {id(p) for p in model.patch_embed.parameters()}


def test_optimizers_and_their_rates(model):
    options = OptimizerOptions("adamw", eps=1e-7, betas=(0.8, 0.9), momentum=0.7)
    adamw = build_optimizer(parameter_groups(model, 0.05, 0.5), options)
    assert isinstance(adamw, torch.optim.AdamW) and adamw.defaults["betas"] == (0.8, 0.9)
    assert adamw.defaults["eps"] == 1e-7
    set_learning_rate(adamw, lambda scale: 2.0 * scale)
    assert all(g["lr"] == 2.0 * g["lr_scale"] for g in adamw.param_groups)
    sgd = build_optimizer(parameter_groups(model, 0.05, 1.0), replace(options, name="sgd"))
    assert isinstance(sgd, torch.optim.SGD) and sgd.defaults["momentum"] == 0.7 and sgd.defaults["nesterov"]
    for name in ("fused_adam", "fused_lamb"):
        other = build_optimizer(parameter_groups(model, 0.05, 1.0), replace(options, name=name))
        set_learning_rate(other, lambda _: 0.1)
        model(torch.randn(1, 3, 32, 32)).sum().backward()
        before = model.head.weight.detach().clone()
        other.step()
        assert not torch.equal(before, model.head.weight) and model.head.weight.isfinite().all()
        assert isinstance(other, torch.optim.AdamW) == (name == "fused_adam")


def test_every_configured_name_can_be_built():
    assert all(KEYS["TRAIN.OPTIMIZER.NAME"].check(name) is None for name in OPTIMIZERS)
    assert KEYS["TRAIN.OPTIMIZER.NAME"].check("lion")


@pytest.mark.parametrize("name", ["adamw", "sgd", "fused_lamb"])
@pytest.mark.parametrize("clip", [0.0, 0.5])
def test_a_step_clips_as_torch_does_and_is_not_taken_without_a_finite_gradient(name, clip):
    """Every optimizer, fused or not, against clipping the gradients first."""
    start, gradient = torch.tensor([1.0, -2.0, 0.5]), torch.tensor([3.0, 0.0, 4.0])
    weights = []
    for ours in (True, False):
        weight = torch.nn.Parameter(start.clone())
        groups = [{"params": [weight], "weight_decay": 0.05, "lr_scale": 1.0}]
        optimizer = build_optimizer(groups, OptimizerOptions(name))
        set_learning_rate(optimizer, lambda _: 0.1)
        if ours:
            weight.grad = gradient * float("nan")
            step_if_finite(optimizer, weight.grad.norm(), clip)
        for step in range(3):
            weight.grad = gradient * (step + 1)
            norm = weight.grad.norm()
            if ours:
                step_if_finite(optimizer, norm, clip)
            else:
                if clip:
                    torch.nn.utils.clip_grad_norm_([weight], clip)
                optimizer.step()
        weights.append(weight.detach().clone())
        if ours:
            moments = str(optimizer.state_dict())
            for bad in (float("nan"), float("inf")):
                weight.grad = gradient * bad
                step_if_finite(optimizer, weight.grad.norm(), clip)
            assert torch.equal(weight, weights[0]) and str(optimizer.state_dict()) == moments
    torch.testing.assert_close(*weights, rtol=1e-6, atol=0)


def test_the_device_decides_about_a_step_of_the_recipe(monkeypatch):
    weight = torch.nn.Parameter(torch.ones(2))
    optimizer = build_optimizer([{"params": [weight], "weight_decay": 0.0, "lr_scale": 1.0}], OptimizerOptions())
    weight.grad = torch.ones(2)
    monkeypatch.setattr(torch.Tensor, "__bool__", lambda self: pytest.fail("waited for the device"))
    step_if_finite(optimizer, weight.grad.norm(), 1.0)
    assert optimizer.state[weight]["step"].item() == 1


@pytest.mark.parametrize("layer_decay", [1.0, 0.5])
def test_the_backbone_may_learn_more_slowly_than_the_head(model, layer_decay):
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    plain = parameter_groups(model, 0.05, layer_decay)
    before = {id(p): (g["lr_scale"], g["weight_decay"]) for g in plain for p in g["params"]}
    after = {id(p): (g["lr_scale"], g["weight_decay"]) for g in slow_backbone(plain, model, 0.1) for p in g["params"]}
    assert before.keys() == after.keys() == names.keys()
    for key, (scale, decay) in before.items():
        factor = 1.0 if names[key].startswith("head.") else 0.1
        assert after[key] == (pytest.approx(scale * factor), decay)


@pytest.mark.parametrize("layer_decay", [1.0, 0.5])
def test_a_model_may_decide_by_name_what_decays(model, layer_decay):
    model.decays = lambda name: "norm" not in name
    groups = parameter_groups(model, 0.05, layer_decay)
    assert sorted(id(p) for g in groups for p in g["params"]) == sorted(map(id, model.parameters()))
    decay = {id(p): g["weight_decay"] for g in groups for p in g["params"]}
    assert all(decay[id(p)] == (0.0 if "norm" in name else 0.05) for name, p in model.named_parameters())
    assert len({g["lr_scale"] for g in groups}) == (1 if layer_decay == 1 else 6)
