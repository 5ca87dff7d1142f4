"""The segmenter: outputs by mode, groups of parameters, and the names that decay."""

import pytest
import torch
from timm.optim import param_groups_layer_decay

from tasks.registry import new_task
from tests.models.heads.test_upernet import segmenter
from tests.tools.builders import configured
from utils.distributed.world import World


def test_it_returns_logits_of_the_image_and_in_training_those_of_both_heads():
    model, images = segmenter(), torch.randn(2, 3, 30, 45)
    assert model(images).shape == (2, 5, 30, 45)
    decoded, auxiliary = model.train()(images)
    assert decoded.shape == (2, 5, 8, 12) and auxiliary.shape == (2, 5, 2, 3)


def test_decay_goes_by_the_names_of_the_released_recipe():
    model = segmenter()
    decayed = {name for name, _ in model.named_parameters() if model.decays(name)}
    assert {"backbone.layers.0.blocks.0.attn.qkv.bias", "decode_head.conv_seg.bias", "decode_head.bottleneck.bn.weight",
            "backbone.patch_embed.proj.weight", "backbone.layers.0.downsample.reduction.weight"} <= decayed  # fmt: skip
    kept = {name for name, _ in model.named_parameters()} - decayed
    assert {"backbone.norm0.weight", "backbone.layers.0.blocks.0.norm1.bias", "backbone.patch_embed.norm.weight",
            "backbone.layers.0.blocks.0.attn.relative_position_bias_table"} <= kept  # fmt: skip


def test_layer_decay_counts_the_blocks_and_puts_the_heads_last():
    groups = param_groups_layer_decay(segmenter(), 0.1, layer_decay=0.5)
    scales = sorted({group["lr_scale"] for group in groups})
    assert len(scales) == 10 and scales[-1] == 1.0  # stem, 8 blocks, heads


def test_the_heads_are_what_is_not_the_backbone():
    model = segmenter()
    heads = {id(p) for p in model.get_classifier().parameters()}
    rest = [name for name, p in model.named_parameters() if id(p) not in heads]
    assert rest and all(name.startswith("backbone.") for name in rest)


def test_a_frozen_backbone_leaves_the_heads_to_train():
    model = segmenter().train()
    model.freeze(None)
    assert {name.split(".")[0] for name, p in model.named_parameters() if p.requires_grad} == {
        "decode_head",
        "auxiliary_head",
    }


@pytest.mark.parametrize(
    ("recipe", "millions"),
    [("tiny_ade20k", 60), ("small_ade20k", 81), ("base_ade20k", 121), ("large_ade20k_640", 234)],
)
def test_the_released_models_have_their_published_sizes(recipe, millions):
    task = new_task(configured(f"segmentation/upernet_swin_{recipe}.yaml"), World())
    with torch.device("meta"):
        model = task.new_model(None)
    assert round(sum(p.numel() for p in model.parameters()) / 1e6) == millions
    assert model.decode_head.conv_seg.out_channels == 150


# of the authors' upernet_swin_tiny_patch4_window7_512x512.pth
TINY = {
    "backbone.patch_embed.proj.weight": (96, 3, 4, 4),
    "backbone.layers.0.blocks.0.attn.relative_position_bias_table": (169, 3),
    "backbone.layers.2.blocks.5.mlp.fc1.weight": (1536, 384),
    "backbone.layers.1.downsample.reduction.weight": (384, 768),
    "backbone.norm0.weight": (96,),
    "backbone.norm3.bias": (768,),
    "decode_head.conv_seg.weight": (150, 512, 1, 1),
    "decode_head.conv_seg.bias": (150,),
    "decode_head.psp_modules.0.1.conv.weight": (512, 768, 1, 1),
    "decode_head.psp_modules.3.1.bn.num_batches_tracked": (),
    "decode_head.bottleneck.conv.weight": (512, 2816, 3, 3),
    "decode_head.lateral_convs.2.conv.weight": (512, 384, 1, 1),
    "decode_head.fpn_convs.0.conv.weight": (512, 512, 3, 3),
    "decode_head.fpn_bottleneck.conv.weight": (512, 2048, 3, 3),
    "decode_head.fpn_bottleneck.bn.running_var": (512,),
    "auxiliary_head.convs.0.conv.weight": (256, 384, 3, 3),
    "auxiliary_head.conv_seg.weight": (150, 256, 1, 1),
}


def test_names_and_shapes_are_those_of_the_released_file():
    task = new_task(configured("segmentation/upernet_swin_tiny_ade20k.yaml"), World())
    with torch.device("meta"):
        state = task.new_model(None).state_dict()
    assert {name: tuple(state[name].shape) for name in TINY} == TINY
    assert {name.split(".")[0] for name in state} == {"backbone", "decode_head", "auxiliary_head"}
    blocks = len({name.rpartition(".attn.qkv.weight")[0] for name in state if name.endswith(".attn.qkv.weight")})
    assert blocks == 12 and not [name for name in state if "relative_position_index" in name]
