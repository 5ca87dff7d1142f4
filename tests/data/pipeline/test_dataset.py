"""Samples by epoch and index; what happens to unreadable ones."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from data.pipeline.dataset import NO_LABEL, EvalSamples, Sample, TrainSamples, collate
from data.pipeline.transforms import Box, EvalTransform, EvalTransformOptions, Prepared, TrainTransform
from tests.tools.builders import AUGMENTED, PLAIN, open_folder
from utils.errors import DataError

# crops and mirrors, but keeps colours
COLOUR_KEEPING = replace(AUGMENTED, auto_augment="none", re_prob=0.0)


@pytest.fixture
def colours(tmp_path):
    """One colour per class, eight images each; the fourth of every class is unreadable."""
    for label, colour in enumerate(["#ff0000", "#00ff00", "#0000ff"]):
        for split in ("train", "val"):
            folder = tmp_path / split / f"class_{label}"
            folder.mkdir(parents=True)
            for number in range(8):
                Image.new("RGB", (40, 40), colour).save(folder / f"{number}.png")
            (folder / "3.png").write_bytes(b"no image")
    return open_folder(tmp_path)


def train_samples(source, transform=COLOUR_KEEPING, on_bad="error", seed=7):
    return TrainSamples(source, TrainTransform(transform), seed=seed, on_bad=on_bad)


def eval_samples(source, on_bad="error"):
    return EvalSamples(source, EvalTransform(EvalTransformOptions(size=(32, 32))), on_bad=on_bad)


def colour_of(sample):
    return int(sample.prepared.pixels.mean((1, 2)).argmax())


def test_a_sample_depends_on_seed_epoch_and_index_alone(photos):
    source = open_folder(photos).train
    samples = train_samples(source, AUGMENTED)
    first = samples[2, 5].prepared.pixels
    np.random.seed(99), torch.manual_seed(99)
    samples[0, 1]
    assert np.array_equal(first, samples[2, 5].prepared.pixels)
    assert not np.array_equal(first, samples[3, 5].prepared.pixels)
    assert not np.array_equal(first, train_samples(source, AUGMENTED, seed=8)[2, 5].prepared.pixels)
    assert (len(samples), samples[2, 5].label, samples.name(5)) == (36, 0, source.name(5))


def test_evaluation_samples_are_the_same_in_every_epoch(photos):
    samples = eval_samples(open_folder(photos).val)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    assert np.array_equal(samples[0, 7].prepared.pixels, samples[4, 7].prepared.pixels)
    assert torch.equal(torch.get_rng_state(), before)
    assert (len(samples), samples[0, 7].label, samples[0, 7].prepared.boxes) == (15, 1, [])


def test_fault_38_an_unreadable_image_is_an_error_with_its_path(colours):
    for samples, split in ((train_samples(colours.train), "train"), (eval_samples(colours.val), "val")):
        error = samples[0, 11]
        assert isinstance(error, DataError) and f"{split}/class_1/3.png" in str(error)


def test_fault_38_another_sample_with_its_own_label_stands_in(colours):
    """Whatever replaces an unreadable image, colour and label belong together."""
    samples = train_samples(colours.train, on_bad="skip")
    replaced = []
    for epoch in range(4):
        for index in range(24):
            sample = samples[epoch, index]
            assert colour_of(sample) == sample.label
            assert bool(sample.bad) == (index % 8 == 3)
            if sample.bad:
                assert f"class_{index // 8}/3.png" in sample.bad
                replaced.append((index // 8, sample.label))
                assert samples[epoch, index].label == sample.label  # determined by epoch and index
    assert any(bad != stand_in for bad, stand_in in replaced)


def test_fault_38_unreadable_images_are_not_evaluated(colours):
    samples = eval_samples(colours.val, on_bad="skip")
    kept = [samples[0, index] for index in range(24)]
    assert [sample.label for sample in kept].count(NO_LABEL) == 3
    assert all(colour_of(sample) == sample.label for sample in kept if sample.label != NO_LABEL)
    bad = kept[3]
    assert "class_0/3.png" in bad.bad and bad.prepared.pixels.shape == (3, 32, 32) and not bad.prepared.pixels.any()


def test_fault_38_a_folder_without_readable_images_ends_the_run(own_photos):
    for file in (own_photos / "train").rglob("*.jpg"):
        file.write_bytes(b"")
    samples = train_samples(open_folder(own_photos).train, PLAIN, on_bad="skip")
    assert "20 samples that could replace it cannot be read either" in str(samples[0, 0])


def sample(value, *boxes, bad=""):
    return Sample(Prepared(np.full((3, 4, 4), value, np.uint8), list(boxes)), value, bad)


def test_batches_number_the_boxes_by_image():
    batch = collate(
        [sample(0), sample(1, Box(1, 2, 3, 4, 55), bad="x"), sample(2, Box(0, 0, 1, 1, 6), Box(5, 5, 2, 2, 7))]
    )
    assert batch.pixels.images.shape == (3, 3, 4, 4) and batch.pixels.images.dtype == torch.uint8
    assert batch.pixels.images[:, 0, 0, 0].tolist() == batch.targets.tolist() == [0, 1, 2]
    assert batch.pixels.boxes.tolist() == [[1, 1, 2, 3, 4, 55], [2, 0, 0, 1, 1, 6], [2, 5, 5, 2, 2, 7]]
    assert batch.bad == ["x"]
    assert collate([sample(0)]).pixels.boxes.shape == (0, 6)


def test_the_first_error_takes_the_place_of_its_batch():
    first, second = DataError("a"), DataError("b")
    assert collate([sample(0), first, second]) is first
