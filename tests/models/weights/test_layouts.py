"""Every layout is recognised and converts both ways without loss."""

import pytest
import torch

from models.layers import PatchMerging
from models.weights.layouts import LAYOUTS, recognise
from models.weights.load import find_weights, load_weights
from tests.models.weights.conftest import filled

# mmpretrain stores V1 like mmdetection, mmdetection has no V2
MM_CANNOT = [("swin", "mmpretrain"), ("swinv2", "mmdetection")]
BOTH = [(f, layout) for f in ("swin", "swinv2") for layout in sorted(LAYOUTS) if (f, layout) not in MM_CANNOT]


@pytest.mark.parametrize(("family", "layout"), BOTH)
def test_every_layout_is_recognised_and_converts_back_to_the_same_bits(family, layout):
    ape = layout != "torchvision"
    source, target = filled(family, ape=ape), filled(family, seed=1, ape=ape)
    stored = LAYOUTS[layout].from_original(source.state_dict())
    assert (set(stored) == set(source.state_dict())) == (layout == "original")
    found = find_weights(stored, "x")
    assert found.layout.name == layout and found.family == family
    load_weights(target, found)
    for name, value in source.state_dict().items():
        assert torch.equal(target.state_dict()[name], value), name


@pytest.mark.parametrize(("family", "layout"), BOTH)
def test_the_shapes_of_a_layout_are_those_it_stores(family, layout):
    weights = filled(family).state_dict()
    shapes, stored = LAYOUTS[layout].shapes_of(weights), LAYOUTS[layout].from_original(weights)
    prefix = LAYOUTS[layout].prefix_v2 if family == "swinv2" else LAYOUTS[layout].prefix
    assert {name: value.shape for name, value in shapes.items()} == {
        name.removeprefix(prefix): value.shape for name, value in stored.items()
    }
    assert all(value.is_meta for value in shapes.values())


NAMES = {
    "original": [("layers.1.downsample.norm.weight", "layers.1.downsample.norm.weight")],
    "timm": [
        ("layers.0.downsample.reduction.weight", "layers.1.downsample.reduction.weight"),
        ("layers.10.blocks.11.mlp.fc1.bias", "layers.10.blocks.11.mlp.fc1.bias"),
        ("head.weight", "head.fc.weight"),
    ],
    "torchvision": [
        ("patch_embed.norm.bias", "features.0.2.bias"),
        ("layers.0.blocks.1.norm1.weight", "features.1.1.norm1.weight"),
        ("layers.2.blocks.17.mlp.fc2.weight", "features.5.17.mlp.3.weight"),
        ("layers.2.downsample.norm.weight", "features.6.norm.weight"),
    ],
    "transformers": [
        ("absolute_pos_embed", "swin.embeddings.position_embeddings"),
        ("layers.1.blocks.0.norm2.bias", "swin.encoder.layers.1.blocks.0.layernorm_after.bias"),
        ("layers.1.blocks.0.attn.proj.bias", "swin.encoder.layers.1.blocks.0.attention.output.dense.bias"),
        ("norm.weight", "swin.layernorm.weight"),
        ("head.bias", "classifier.bias"),
    ],
}


@pytest.mark.parametrize(("layout", "ours", "theirs"), [(k, *pair) for k, pairs in NAMES.items() for pair in pairs])
def test_names_by_hand(layout, ours, theirs):
    value = torch.zeros(3)
    assert list(LAYOUTS[layout].from_original({ours: value})) == [theirs]
    assert list(LAYOUTS[layout].to_original({theirs.removeprefix(LAYOUTS[layout].prefix): value})) == [ours]


def test_an_index_that_a_layout_never_has_is_left_alone():
    """torchvision's blocks are at odd indices, its merging at even ones from 2."""
    names = ["features.2.norm.weight", "features.0.norm.weight", "features.3.norm.weight"]
    weights = LAYOUTS["torchvision"].to_original(dict.fromkeys(names, torch.zeros(1)))
    assert list(weights) == ["layers.0.downsample.norm.weight", *names[1:]]


MM_NAMES = """
backbone.patch_embed.projection.weight backbone.patch_embed.norm.bias backbone.norm1.weight head.fc.bias
backbone.stages.0.blocks.1.norm1.weight backbone.stages.1.blocks.0.attn.w_msa.qkv.weight
backbone.stages.1.blocks.0.attn.w_msa.proj.bias backbone.stages.0.blocks.0.ffn.layers.0.0.weight
backbone.stages.0.blocks.0.ffn.layers.1.bias
""".split()
MM_V1_NAMES = """
backbone.stages.0.blocks.0.attn.w_msa.relative_position_bias_table backbone.stages.0.downsample.norm.weight
backbone.stages.0.downsample.reduction.weight backbone.stages.0.blocks.0.attn.w_msa.qkv.bias
""".split()
MM_V2_NAMES = """
backbone.stages.1.downsample.norm.weight backbone.stages.1.downsample.reduction.weight
backbone.stages.0.blocks.0.attn.w_msa.logit_scale backbone.stages.0.blocks.0.attn.w_msa.cpb_mlp.2.weight
backbone.stages.0.blocks.0.attn.w_msa.q_bias backbone.stages.0.blocks.0.attn.w_msa.v_bias
""".split()


def test_names_of_the_mm_libraries_are_those_of_their_models():
    """As mmdetection 3.3 and mmpretrain 1.2 name them; outputs of converted weights equalled theirs to 6e-7."""
    v1 = LAYOUTS["mmdetection"].from_original(filled().state_dict())
    v2 = LAYOUTS["mmpretrain"].from_original(filled("swinv2").state_dict())
    assert set(MM_NAMES + MM_V1_NAMES) <= set(v1) and not set(MM_V2_NAMES) & set(v1)
    assert set(MM_NAMES + MM_V2_NAMES) <= set(v2) and not set(MM_V1_NAMES) & set(v2)


def test_mmdetection_merges_patches_in_the_order_of_unfold():
    """A merging written with torch's Unfold, as mmdetection's, gives our merging's output from converted weights."""
    merging, x = PatchMerging(6), torch.randn(2, 4, 8, 6)
    for p in merging.parameters():
        torch.nn.init.normal_(p)
    names = {f"layers.0.downsample.{k}": v for k, v in merging.state_dict().items()}
    theirs = LAYOUTS["mmdetection"].from_original(names)
    unfolded = torch.nn.functional.unfold(x.permute(0, 3, 1, 2), 2, stride=2).transpose(1, 2)
    normed = torch.nn.functional.layer_norm(
        unfolded, (24,), *(theirs[f"backbone.stages.0.downsample.norm.{leaf}"] for leaf in ("weight", "bias"))
    )
    expected = normed @ theirs["backbone.stages.0.downsample.reduction.weight"].T
    torch.testing.assert_close(merging(x).flatten(1, 2), expected)


def test_without_a_head_timm_is_recognised_by_where_it_merges():
    names = [name for name in filled().state_dict() if not name.startswith("head")]
    timm = [name.replace("layers.0.downsample", "layers.1.downsample") for name in names]
    assert (recognise(names).name, recognise(timm).name) == ("original", "timm")


def test_parts_beside_the_classifier_are_extras():
    """The mask token of pre-training, and a detector's norms of all stages but the last, which the classifier has."""
    stages = [f"stages.{i}.blocks.0.norm1.weight" for i in range(4)]
    norms = [f"norm{i}.weight" for i in range(4)]
    assert LAYOUTS["mmdetection"].extras([*stages, *norms]) == norms[:3]
    others = ["embeddings.mask_token", "hidden_states_norms.stage1.weight", "mask_token"]
    assert LAYOUTS["transformers"].extras([*others, "layernorm.weight"]) == others
