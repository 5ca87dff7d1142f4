"""The SimMIM network against transformers and a plain computation."""

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from models.weights.checks import WrongModelError
from models.weights.load import find_weights, load_contents, load_weights
from tasks.registry import new_task
from tasks.simmim.model import SimMIM
from tests.tools.builders import configured, randomize, small
from tests.tools.errors import raises
from utils.distributed.world import World
from utils.errors import CheckpointError, ConfigError
from utils.training.optim import parameter_groups


def pretraining(family="swin", square=8, **more):
    """32x32 pixels, patches of 2, squares of 8; a last map of 8x8."""
    torch.manual_seed(0)
    model = SimMIM(small(family, **more), square)
    return randomize(model)


MASK = torch.rand(2, 4, 4, generator=torch.Generator().manual_seed(3)) < 0.6
IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("family", ["swin", "swinv2"])
def test_names_are_those_of_the_released_files(family):
    names = set(pretraining(family).state_dict())
    assert {"encoder.mask_token", "encoder.patch_embed.proj.weight", "decoder.0.weight", "decoder.0.bias"} <= names
    assert all(name.startswith(("encoder.", "decoder.0.")) for name in names)
    assert not any("head" in name for name in names)


@pytest.mark.parametrize("family", ["swin", "swinv2"])
def test_output_equals_a_plain_computation(family):
    model = pretraining(family, ape=True)
    encoder = model.encoder
    x = encoder.patch_embed(IMAGES)
    tokens = torch.nn.functional.interpolate(MASK[:, None].float(), (16, 16), mode="nearest").permute(0, 2, 3, 1)
    x = x * (1 - tokens) + encoder.mask_token.view(1, 1, 1, -1) * tokens
    x = x + encoder.absolute_pos_embed.view(1, 16, 16, -1)
    for stage in encoder.layers:
        _, x = stage(x)
    features = encoder.norm(x)  # (B, 8, 8, 16)
    pixels = features @ model.decoder[0].weight[:, :, 0, 0].T + model.decoder[0].bias  # channels x 4 x 4 of each token
    wanted = pixels.view(2, 8, 8, 3, 4, 4).permute(0, 3, 1, 4, 2, 5).reshape(2, 3, 32, 32)
    assert torch.allclose(model(IMAGES, MASK), wanted, atol=1e-6)


def test_what_is_masked_is_not_seen_and_every_parameter_learns():
    model = pretraining()
    changed = IMAGES + torch.randn_like(IMAGES) * MASK.repeat_interleave(8, 1).repeat_interleave(8, 2)[:, None]
    assert torch.equal(model(IMAGES, MASK), model(changed, MASK))
    assert not torch.equal(model(IMAGES), model(changed))
    model.train()(IMAGES, MASK).square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


@pytest.mark.seconds
def test_encoder_and_decoder_equal_those_of_transformers(tmp_path):
    transformers = pytest.importorskip("transformers")
    config = transformers.SwinConfig(
        image_size=32, patch_size=2, embed_dim=8, depths=[2, 2], num_heads=[2, 4], window_size=4, encoder_stride=4
    )
    torch.manual_seed(0)
    peer = randomize(transformers.SwinForMaskedImageModeling(config))
    with torch.no_grad():
        peer.swin.embeddings.mask_token.normal_()
    model = pretraining()
    peer.save_pretrained(tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    found = find_weights({k: v for k, v in stored.items() if not k.startswith("decoder")}, "peer")
    model.encoder.mask_token, token = None, model.encoder.mask_token
    load_weights(model.encoder, found)
    model.encoder.mask_token = token
    with torch.no_grad():
        token.copy_(stored["swin.embeddings.mask_token"])
        model.decoder[0].weight.copy_(stored["decoder.0.weight"])
        model.decoder[0].bias.copy_(stored["decoder.0.bias"])
        tokens = MASK.repeat_interleave(4, 1).repeat_interleave(4, 2).flatten(1)
        theirs = peer(IMAGES, bool_masked_pos=tokens).reconstruction
    assert (model(IMAGES, MASK) - theirs).abs().max() < 1e-5 * theirs.abs().max()


def test_sizes_that_do_not_divide_are_rejected():
    with raises(ConfigError, "DATA.MASK_PATCH_SIZE", "squares of 9", "patches of 2"):
        SimMIM(small(), 9)
    with raises(ConfigError, "DATA.IMG_SIZE", "34x34", "squares of 4"):
        SimMIM(small(img_size=34), 2)


@pytest.mark.parametrize("family", ["swin", "swinv2"])
@pytest.mark.parametrize("decay", [True, False])
def test_weight_decay_as_in_the_original(family, decay):
    """It spares vectors, the mask token and the position embedding; sparing position biases needs another key."""
    model = SimMIM(small(family, ape=True), 8, decay_position_bias=decay)
    names = {id(p): name for name, p in model.named_parameters()}
    groups = parameter_groups(model, 0.05, 1.0)
    decayed = {names[id(p)] for group in groups if group["weight_decay"] for p in group["params"]}
    biases = ("relative_position_bias_table", "logit_scale", "cpb_mlp.0.weight", "cpb_mlp.2.weight")
    spared = ("encoder.mask_token", "encoder.absolute_pos_embed")
    matrices = {name for name, p in model.named_parameters() if p.ndim > 1 and name not in spared}
    assert any(name.endswith(biases) for name in matrices)
    assert decayed == {name for name in matrices if decay or not name.endswith(biases)}


@pytest.mark.parametrize("family", ["swin", "swinv2"])
def test_a_checkpoint_loads_whole_for_pretraining_and_as_an_encoder_for_a_classifier(family):
    source, target = pretraining(family), SimMIM(small(family), 8).eval()
    assert "with its mask token and decoder" in load_contents(target, {"model": source.state_dict()}, "x.pth")
    assert torch.equal(source(IMAGES, MASK), target(IMAGES, MASK))
    classifier = small(family).eval()
    line = load_contents(classifier, {"model": source.state_dict()}, "x.pth", head_for=list("abcde"))
    assert "3 ignored" in line and "head initialised at random" in line
    assert torch.equal(classifier.forward_features(IMAGES), source.encoder.forward_features(IMAGES))


def test_pretraining_starts_from_a_classifier_only_if_it_is_meant():
    classifier, model = small(), pretraining()
    before = model.decoder[0].weight.clone()
    line = load_contents(model, classifier.state_dict(), "x.pth", head_for=[])
    assert "a new mask token and decoder" in line and torch.equal(model.decoder[0].weight, before)
    assert torch.equal(model.encoder.patch_embed.proj.weight, classifier.patch_embed.proj.weight)
    with raises(WrongModelError, "x.pth", "no mask token and no decoder", "--pretrained"):
        load_contents(model, classifier.state_dict(), "x.pth")


@pytest.mark.parametrize(
    ("name", "value", "kind", "problem"),
    [
        ("decoder.0.weight", torch.zeros(12, 16, 1, 1), WrongModelError, "1 of a different shape: decoder.0.weight"),
        ("decoder.0.bias", torch.full((48,), float("nan")), CheckpointError, "decoder.0.bias is not finite"),
        ("encoder.mask_token", None, WrongModelError, "1 missing: encoder.mask_token"),
    ],
)
def test_damaged_parts_of_a_file_are_named(name, value, kind, problem):
    model = pretraining()
    weights = {**model.state_dict(), name: value}
    with raises(kind, "x.pth", problem):
        load_contents(model, {k: v for k, v in weights.items() if v is not None}, "x.pth")


def test_checkpointing_computes_the_same():
    model = pretraining().train()
    wanted = model(IMAGES, MASK)
    model.set_grad_checkpointing()
    assert torch.equal(model(IMAGES, MASK), wanted)
    assert isinstance(model, nn.Module) and model.pretrained_windows() == []
    assert pretraining("swinv2").pretrained_windows() == [4, 4]


@pytest.mark.seconds
def test_recipes_build_the_published_sizes():
    for stem, parameters in (
        ("simmim_pretrain__swin_base__img192_window6__800ep", 86_700_000),
        ("simmim_pretrain__swinv2_base__img192_window12__800ep", 87_000_000),
    ):
        with torch.device("meta"):
            model = new_task(configured(f"simmim/{stem}.yaml"), World()).new_model(None)
        count = sum(p.numel() for p in model.parameters())
        assert abs(count - parameters - 1025 * 3072) < 1e6
