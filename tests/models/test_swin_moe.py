"""Swin-MoE against V1 with the same biases, its options, its balance loss."""

import pytest
import torch
from timm.optim import param_groups_weight_decay

from models.layers import Mlp
from models.moe.mixture import MoeMlp
from models.moe.routing import RoutingOptions
from models.ops.stochastic_depth import KeptSamples
from models.registry import model_options
from models.swin import SwinTransformer
from models.swin_moe import SwinMoe
from models.weights.load import find_weights, load_weights
from tests.models.weights.conftest import filled
from tests.tools.builders import MOE, configured, randomize, small
from tests.tools.errors import raises
from utils.errors import ConfigError

ONE_EXPERT = {"num_experts": 1, "routing": RoutingOptions(capacity_factor=0.0)}
DENSE = {"moe_blocks": ((-1,), (-1,))}


def as_v1(model):
    """Returns a Swin V1 with the tables and the MLPs that a model computes or has: one expert's gate is 1."""
    state = dict(model.state_dict())
    for name, module in model.named_modules():
        if hasattr(module, "cpb_mlp"):
            state[f"{name}.relative_position_bias_table"] = module.cpb_mlp(module.relative_coords_table).detach()
        if isinstance(module, MoeMlp):
            weights = {key: state.pop(f"{name}._moe_layer.experts.batched_{key}")[0] for key in ("fc1_w", "fc2_w")}
            state |= {f"{name}.fc1.weight": weights["fc1_w"], f"{name}.fc2.weight": weights["fc2_w"].T}
            for layer in ("fc1", "fc2"):
                state[f"{name}.{layer}.bias"] = state.pop(f"{name}._moe_layer.experts.batched_{layer}_bias")[0]
    v1 = small("swin", window_size=model.options.window_size)
    v1.load_state_dict({key: value for key, value in state.items() if "cpb_mlp" not in key and "gates" not in key})
    return v1.eval()


@pytest.mark.parametrize("more", [DENSE, ONE_EXPERT])
@pytest.mark.parametrize("size", [(32, 32), (18, 30)])
def test_logits_equal_v1_with_the_biases_that_the_network_computes(more, size):
    model, images = randomize(small("swin_moe", **more)), torch.randn(3, 3, *size)
    v1 = as_v1(model)
    assert isinstance(v1, SwinTransformer)
    with torch.no_grad():
        torch.testing.assert_close(model(images), v1(images), atol=1e-5, rtol=1e-5)


def test_tensors_have_the_names_and_shapes_of_the_released_files():
    model = small("swin_moe", routing=RoutingOptions(cosine=True, cosine_dim=10))
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    mlp = "layers.1.blocks.0.mlp"
    assert {name: shape for name, shape in shapes.items() if name.startswith(mlp)} == {
        f"{mlp}._moe_layer.experts.batched_fc1_w": (4, 64, 16),
        f"{mlp}._moe_layer.experts.batched_fc2_w": (4, 64, 16),
        f"{mlp}._moe_layer.experts.batched_fc1_bias": (4, 64),
        f"{mlp}._moe_layer.experts.batched_fc2_bias": (4, 16),
        f"{mlp}._moe_layer.gates.0.cosine_projector.weight": (10, 16),
        f"{mlp}._moe_layer.gates.0.cosine_projector.bias": (10,),
        f"{mlp}._moe_layer.gates.0.sim_matrix": (10, 4),
        f"{mlp}._moe_layer.gates.0.temperature": (1,),
    }
    linear = small("swin_moe", mlp_fc2_bias=False)
    assert linear.state_dict()[f"{mlp}._moe_layer.gates.0.wg.weight"].shape == (4, 16)
    assert "layers.0.blocks.0.mlp.fc2.bias" in shapes and "layers.0.blocks.0.mlp.fc2.bias" not in linear.state_dict()
    assert not linear.get_parameter(f"{mlp}._moe_layer.experts.batched_fc2_bias").requires_grad
    attention = {name.removeprefix("layers.0.blocks.1.attn.") for name in shapes if "layers.0.blocks.1.attn" in name}
    assert attention == {
        *("cpb_mlp.0.weight", "cpb_mlp.0.bias", "cpb_mlp.2.weight"),
        *("qkv.weight", "qkv.bias", "proj.weight", "proj.bias"),
    }


def test_weight_decay_spares_position_biases_biases_of_experts_and_the_cosine_router():
    model = small("swin_moe", ape=True, routing=RoutingOptions(cosine=True))
    decayed, kept = {}, {}
    names = {id(p): name for name, p in model.named_parameters()}
    for group in param_groups_weight_decay(model, 0.1, no_weight_decay_list=model.no_weight_decay()):
        (decayed if group["weight_decay"] else kept).update({names[id(p)]: p for p in group["params"]})
    experts = "layers.0.blocks.1.mlp._moe_layer.experts.batched"
    assert {f"{experts}_fc1_w", f"{experts}_fc2_w", "layers.0.blocks.0.mlp.fc1.weight"} <= decayed.keys()
    words = ("cpb_mlp", "fc1_bias", "fc2_bias", "temperature", "cosine_projector", "sim_matrix", "absolute_pos_embed")
    assert {f"{experts}_fc1_bias", f"{experts}_fc2_bias", "absolute_pos_embed"} <= kept.keys()
    assert not [name for name in decayed if any(word in name for word in words)]


def test_initial_weights_have_the_configured_deviation():
    model = small("swin_moe", embed_dim=48, init_std=0.005, ape=True)
    for name, p in model.named_parameters():
        if p.ndim > 1 and p.numel() > 1000 and not name.endswith("_bias") and "patch_embed" not in name:
            assert p.std().item() == pytest.approx(0.005, rel=0.15), name
    model.reset_classifier(50)
    assert model.head.weight.std().item() == pytest.approx(0.005, rel=0.1)


def test_the_balance_loss_is_the_weighted_sum_over_layers_and_reaches_the_routers():
    model = small("swin_moe", aux_loss_weight=0.3)
    assert not model.balance_loss() and model.routing_statistics() == {}
    model(torch.randn(2, 3, 32, 32))
    layers = model.expert_layers()
    assert len(layers) == 2 and all(layer.balance > 0 for layer in layers)
    assert model.balance_loss().item() == pytest.approx(0.3 * sum(layer.balance.item() for layer in layers))
    model.balance_loss().backward()
    with_gradient = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    assert {f"layers.{i}.blocks.{j}.mlp._moe_layer.gates.0.wg.weight" for i, j in ((0, 1), (1, 0))} <= with_gradient
    assert not any("experts" in name for name in with_gradient if name.startswith("layers.1"))


def test_a_model_without_experts_has_no_balance_loss():
    model = small("swin_moe", **DENSE)
    model(torch.randn(1, 3, 32, 32))
    assert model.balance_loss().item() == 0 and model.routing_statistics() == {}


def test_statistics_weigh_layers_by_their_tokens():
    model = filled("swin_moe", routing=RoutingOptions(capacity_factor=0.5, noise=0.0))
    model(torch.randn(2, 3, 32, 32))
    found = model.routing_statistics()
    assert found["load"].shape == (2, 4) and found["load"].sum(1).tolist() == [512, 128]
    assert not found["load"].requires_grad and not found["dropped"].requires_grad
    limits = torch.tensor([[64], [16]])
    dropped = (found["load"] - limits).clamp(min=0).sum()
    assert found["dropped"].item() == pytest.approx(dropped.item() / 640)
    shares = [layer.statistics.dropped.item() for layer in model.expert_layers()]
    assert 0.01 < abs(shares[0] - shares[1])


def test_experts_see_the_whole_batch_whatever_stochastic_depth_skips():
    model = small("swin_moe", drop_path_rate=0.9)
    model(torch.randn(4, 3, 32, 32))
    assert model.routing_statistics()["load"].sum(1).tolist() == [2 * 4 * 256, 2 * 4 * 64]
    block = model.stages()[1].blocks[0]
    x, factors = torch.randn(4, 8, 8, 16), torch.tensor([0.0, 2.0, 0.0, 2.0])
    block.eval()
    attended = x + block.attn(block.norm1(x))
    expected = attended + factors.view(4, 1, 1, 1) * block.mlp(block.norm2(attended))
    for mask in (factors, KeptSamples(factors.nonzero()[:, 0], 2.0)):
        torch.testing.assert_close(block(x, (None, mask)), expected)


def test_routers_score_float32_under_autocast_and_other_mlps_get_the_type_of_products():
    """Of a float32 map, as CUDA's autocast keeps it."""
    x, seen = torch.randn(1, 16, 16, 8), []
    for block in small("swin_moe").stages()[0].blocks:
        block.mlp.register_forward_pre_hook(lambda module, inputs: seen.append((type(module), inputs[0].dtype)))
        with torch.autocast("cpu", torch.bfloat16):
            block(x)
    assert seen == [(Mlp, torch.bfloat16), (MoeMlp, torch.float32)]


def test_the_window_of_pre_training_comes_from_the_file():
    source, model = (small("swin_moe", **DENSE, img_size=64, window_size=window) for window in (8, 16))
    stored = {"model": source.state_dict(), "pretrained_windows": [8, 8]}
    assert "position coordinates of window 8/8" in load_weights(model, find_weights(stored, "x"))
    line = load_weights(small("swin_moe", **DENSE), find_weights(source.state_dict(), "x"))
    assert "MODEL.SWIN_MOE.PRETRAINED_WINDOW_SIZES" in line


def test_options_reach_every_block():
    rates = {"drop_rate": 0.1, "attn_drop_rate": 0.2, "moe_drop": 0.3, "qk_scale": 0.4, "qkv_bias": False}
    model = small("swin_moe", **rates, pretrained_window_sizes=(3, 2))
    assert model.pretrained_windows() == [3, 2] and model.windows() == [4, 4]
    for stage in model.stages():
        for block in stage.blocks:
            attention = block.attn
            assert (attention.scale, attention.attn_drop, attention.proj_drop.p) == (0.4, 0.2, 0.1)
            assert attention.qkv.bias is None
    assert [layer._moe_layer["experts"].dropout for layer in model.expert_layers()] == [0.3, 0.3]
    assert model.stages()[0].blocks[0].mlp.drop.p == 0.1


def test_the_options_are_those_of_the_section():
    keys = {
        "MOE_BLOCKS": [[-1], [-1], [1, 3], [0]],
        "NUM_EXPERTS": 6,
        "NUM_LOCAL_EXPERTS": -2,
        "MLP_FC2_BIAS": False,
        "INIT_STD": 0.01,
        "TOP_VALUE": 2,
        "CAPACITY_FACTOR": 0.75,
        "COSINE_ROUTER": True,
        "NORMALIZE_GATE": True,
        "USE_BPR": False,
        "IS_GSHARD_LOSS": True,
        "GATE_NOISE": 0.5,
        "COSINE_ROUTER_DIM": 64,
        "COSINE_ROUTER_INIT_T": 0.25,
        "MOE_DROP": 0.1,
        "AUX_LOSS_WEIGHT": 0.02,
        "QK_SCALE": 0.3,
        "PRETRAINED_WINDOW_SIZES": [4, 4, 4, 4],
    }
    options = model_options(configured(MODEL__TYPE="swin_moe", **{f"MODEL__SWIN_MOE__{k}": v for k, v in keys.items()}))
    assert [options.blocks_with_experts(i) for i in range(5)] == [set(), set(), {1, 3}, {0}, set()]
    assert (options.num_experts, options.num_local_experts, options.mlp_fc2_bias) == (6, -2, False)
    assert (options.init_std, options.moe_drop, options.aux_loss_weight) == (0.01, 0.1, 0.02)
    assert (options.qkv_bias, options.qk_scale, options.pretrained_window_sizes) == (True, 0.3, (4, 4, 4, 4))
    assert options.routing == RoutingOptions(
        top_k=2,
        capacity_factor=0.75,
        cosine=True,
        cosine_dim=64,
        init_temperature=0.25,
        normalize_gate=True,
        prioritized=False,
        gshard_loss=True,
        noise=0.5,
    )


@pytest.mark.parametrize(("local", "size", "experts"), [(1, 32, 32), (2, 4, 8), (-4, 32, 8), (-2, 2, 1)])
def test_without_a_number_of_experts_it_follows_from_the_ranks(local, size, experts, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", str(size))
    keys = {"MODEL__SWIN_MOE__NUM_LOCAL_EXPERTS": local, "MODEL__SWIN_MOE__MOE_BLOCKS": [[0]]}
    assert model_options(configured(MODEL__TYPE="swin_moe", **keys)).num_experts == experts


def test_ranks_that_give_no_number_of_experts_are_rejected_unless_there_are_none(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    keys = {"MODEL__TYPE": "swin_moe", "MODEL__SWIN_MOE__NUM_LOCAL_EXPERTS": -4}
    with raises(ConfigError, "MODEL.SWIN_MOE.NUM_EXPERTS", "NUM_LOCAL_EXPERTS -4", "2 ranks"):
        model_options(configured(**keys, MODEL__SWIN_MOE__MOE_BLOCKS=[[0]]))
    assert model_options(configured(**keys)).num_experts == 1


def test_blocks_that_do_not_exist_and_too_few_experts_are_rejected():
    with raises(ConfigError, "MODEL.SWIN_MOE.MOE_BLOCKS", "block 2", "stage 1", "2 blocks"):
        small("swin_moe", moe_blocks=((0,), (0, 2)))
    with raises(ConfigError, "MODEL.SWIN_MOE.MOE_BLOCKS", "block 0", "stage 2", "0 blocks"):
        small("swin_moe", moe_blocks=((0,), (0,), (0,)))
    with raises(ConfigError, "MODEL.SWIN_MOE.TOP_VALUE", "2 of 1"):
        small("swin_moe", num_experts=1)
    assert isinstance(small("swin_moe", **DENSE, num_experts=1), SwinMoe) and MOE["num_experts"] == 4
