"""Normalisation and erasing of whole batches, by value."""

import pytest
import torch
from torch import Tensor

from data.pipeline.device import Normalize, _side_stream, prefetch_to_device
from data.pipeline.sample import Collated
from tests.tools.builders import CPU
from utils.preprocessing import Preprocessing


def normalizer(mode="pixel", channels=3):
    mean, std = ((0.485, 0.456, 0.406, 0.5, 0.3)[:channels], (0.229, 0.224, 0.225, 0.25, 0.2)[:channels])
    return Normalize(Preprocessing(mean, std), CPU, mode), Tensor(mean).view(-1, 1, 1), Tensor(std).view(-1, 1, 1)


def levels(channels):
    """Every 8-bit value in every channel: (2, channels, 16, 16), reversed in the second image."""
    ramp = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(1, channels, 16, 16)
    return torch.cat([ramp, 255 - ramp])


@pytest.mark.parametrize("channels", [1, 3, 5])
def test_every_level_is_normalised_to_the_bits_of_torchvision(channels):
    """On the CPU values come from a table; the arithmetic is that of to_tensor and normalize."""
    normalize, mean, std = normalizer(channels=channels)
    images = levels(channels)
    result = normalize(Collated(images))
    assert result.dtype == torch.float32 and torch.equal(result, images.float().div(255).sub(mean).div(std))


def erased(mode, boxes, size=2, channels=3):
    normalize, *_ = normalizer(mode, channels)
    images = torch.full((size, channels, 8, 8), 100, dtype=torch.uint8)
    plain = normalize(Collated(images))
    return plain, normalize(Collated(images, erased=torch.tensor(boxes)))


BOX = (1, 2, 3, 4, 5, 11)  # of image 1: rows 2 to 5, columns 3 to 7; noise of seed 11


@pytest.mark.parametrize("mode", ["pixel", "rand", "const"])
def test_nothing_but_the_box_is_erased(mode):
    plain, result = erased(mode, [BOX])
    changed = torch.zeros(2, 3, 8, 8, dtype=torch.bool)
    changed[1, :, 2:6, 3:8] = True
    assert torch.equal(result != plain, changed)


def test_what_erased_boxes_contain():
    hole = {mode: erased(mode, [BOX])[1][1, :, 2:6, 3:8] for mode in ("pixel", "rand", "const")}
    assert (hole["const"] == 0).all()  # the mean colour
    generator = torch.Generator().manual_seed(11)
    assert torch.equal(hole["pixel"], torch.randn(3, 4, 5, generator=generator))
    colour = torch.randn(3, 1, 1, generator=generator.manual_seed(11))
    assert torch.equal(hole["rand"], colour.expand(3, 4, 5))


def test_a_later_box_covers_an_earlier_one():
    _, result = erased("const", [(0, 0, 0, 4, 4, 1), (0, 2, 2, 4, 4, 2)])
    assert (result[0, :, :4, :4] == 0).all() and (result[0, :, 2:6, 2:6] == 0).all() and (result[1] != 0).all()


def test_noise_does_not_depend_on_how_samples_are_batched():
    together = erased("pixel", [(0, 0, 0, 4, 4, 7), (1, 1, 1, 3, 3, 8)])[1]
    alone = [erased("pixel", [box], size=1)[1] for box in ((0, 0, 0, 4, 4, 7), (0, 1, 1, 3, 3, 8))]
    assert torch.equal(together, torch.cat(alone))


def test_erasing_leaves_the_global_generator_alone():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    erased("pixel", [BOX])
    assert torch.equal(torch.get_rng_state(), before)


def test_images_of_different_sizes_are_normalised_and_erased_one_by_one():
    normalize, mean, std = normalizer("const")
    images = [levels(3)[0], levels(3)[1, :, :5, :9]]
    one, other = normalize(Collated(images, erased=torch.tensor([(1, 1, 2, 2, 3, 0)])))
    assert torch.equal(one, images[0].float().div(255).sub(mean).div(std))
    assert other.shape == (3, 5, 9) and (other[:, 1:3, 2:5] == 0).all() and other[0, 0, 0] != 0


def test_batches_arrive_in_order_with_their_targets():
    normalize, *_ = normalizer()
    batches = [Collated(levels(3)[i : i + 1], torch.tensor([i]), samples=(i + 5,)) for i in (0, 1)]
    batches.insert(1, Collated(torch.zeros(0)))  # without a readable sample
    arrived = list(prefetch_to_device(batches, normalize))
    assert [(targets.tolist(), samples) for _, targets, samples in arrived] == [([0], (5,)), ([1], (6,))]
    assert torch.equal(torch.cat([images for images, *_ in arrived]), normalize(Collated(levels(3))))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_gpu_computes_what_the_cpu_looks_up():
    own = Preprocessing()
    images = levels(3)
    batch = Collated(images, torch.tensor([0, 1]), samples=(0, 1)).pin_memory()
    gpu = Normalize(own, torch.device("cuda"))
    (result,) = prefetch_to_device([batch], gpu)
    torch.testing.assert_close(result[0].cpu(), Normalize(own, CPU)(Collated(images)), atol=1e-6, rtol=0)


def test_a_process_has_one_side_stream(monkeypatch):
    """A stream per epoch would keep the memory of the batches of every epoch."""
    made = []
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: made.append(device) or object())
    device = torch.device("cuda", 7)
    assert _side_stream(device) is _side_stream(device) and made == [device]
