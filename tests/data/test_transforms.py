"""Decoding and transforms, by value and over every operation."""

import io
import random

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data.auto_augment import _RAND_INCREASING_TRANSFORMS, _RAND_TRANSFORMS, AugmentOp

from data.errors import DataError
from data.transforms import decode, eval_transform, train_transform

PLAIN = {
    "size": 32,
    "interpolation": "bicubic",
    "auto_augment": "none",
    "color_jitter": 0.0,
    "crop": {"scale": (1.0, 1.0), "ratio": (1.0, 1.0), "hflip": 0.0},
    "erase": {"re_prob": 0.0, "re_mode": "pixel", "re_count": 1},
}


def photo(size=(96, 96)):
    pixels = np.random.default_rng(0).integers(0, 255, (*size, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def encoded(image, kind="PNG"):
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def test_decode_gives_rgb():
    image = photo()
    assert np.array_equal(np.asarray(decode(encoded(image), "a.png")), np.asarray(image))
    assert decode(encoded(image.convert("L")), "a.png").mode == "RGB"


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_fault_39_sixteen_bits_are_scaled_not_clipped(kind):
    ramp = np.linspace(0, 65535, 64 * 64).astype(np.uint16).reshape(64, 64)
    pixels = np.asarray(decode(encoded(Image.fromarray(ramp), kind), "a"))
    np.testing.assert_array_equal(pixels[..., 0], (ramp / 257).round().astype(np.uint8))


@pytest.mark.parametrize(
    ("data", "reason"),
    [(b"", "empty file"), (b"this is text", "cannot identify"), (encoded(photo(), "JPEG")[:900], "truncated")],
)
def test_fault_38_unreadable_images_are_named(data, reason):
    with pytest.raises(DataError) as caught:
        decode(data, "train/n01/x.jpg")
    assert reason in str(caught.value) and "BytesIO" not in str(caught.value) and "train/n01/x.jpg" in str(caught.value)


def test_evaluation_resizes_by_256_over_224_and_crops():
    image = photo((120, 90))
    out = eval_transform(56, interpolation="bicubic", crop=True)(image)
    resized = image.resize((64, int(64 * 120 / 90)), Image.Resampling.BICUBIC)
    expected = np.asarray(resized)[14 : 14 + 56, 4 : 4 + 56].transpose(2, 0, 1) / 255.0
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    np.testing.assert_allclose(out.numpy(), (expected - mean[:, None, None]) / std[:, None, None], atol=1e-5)


def test_evaluation_without_crop_squashes():
    image = photo((120, 90))
    out = eval_transform(48, interpolation="bicubic", crop=False)(image)
    assert out.shape == (3, 48, 48)
    corner = np.asarray(image.resize((48, 48), Image.Resampling.BICUBIC))[0, 0, 0] / 255.0
    assert out[0, 0, 0].item() == pytest.approx((corner - 0.485) / 0.229, abs=1e-5)


def test_training_without_augmentation_is_a_resize():
    out = train_transform(**PLAIN)(photo())
    torch.testing.assert_close(out, eval_transform(32, interpolation="bicubic", crop=False)(photo()))


def test_training_draws_from_the_global_generators_only():
    transform = train_transform(
        **{
            **PLAIN,
            "auto_augment": "rand-m9-mstd0.5-inc1",
            "erase": {"re_prob": 1.0, "re_mode": "pixel", "re_count": 1},
        }
    )

    def draw(seed):
        random.seed(seed), np.random.seed(seed), torch.manual_seed(seed)
        return transform(photo())

    assert torch.equal(draw(1), draw(1)) and not torch.equal(draw(1), draw(2))


@pytest.mark.parametrize("policy", ["rand-m9-mstd0.5-inc1", "original", "augmix-m5-w4-d2", "none"])
def test_policies_of_timm(policy):
    assert train_transform(**{**PLAIN, "auto_augment": policy})(photo()).shape == (3, 32, 32)


def test_an_unknown_policy_is_refused():
    with pytest.raises(DataError, match="AUG.AUTO_AUGMENT"):
        train_transform(**{**PLAIN, "auto_augment": "nonsense"})


@pytest.mark.parametrize("name", sorted({*_RAND_TRANSFORMS, *_RAND_INCREASING_TRANSFORMS}))
def test_every_randaugment_operation_runs_at_every_magnitude(name):
    """Guards the pair of Pillow and timm: Pillow 13 refuses the 0-bit posterize that timm asks for."""
    for magnitude in np.linspace(0, 10, 21):
        operation = AugmentOp(name, prob=1.0, magnitude=float(magnitude), hparams={"magnitude_std": 0.0})
        assert operation(photo()).size == (96, 96)
