"""The segmenter: outputs by mode, groups of parameters, and the names that decay."""

import torch
from timm.optim import param_groups_layer_decay

from tests.models.heads.test_upernet import segmenter


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
