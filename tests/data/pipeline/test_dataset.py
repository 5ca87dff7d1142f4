"""Samples by epoch and index; what happens to unreadable ones."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from data.pipeline.dataset import Collator, EvalSamples, TrainSamples
from data.pipeline.sample import Skipped, stack
from data.pipeline.transforms import EvalTransform, EvalTransformOptions, TrainTransform
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
    return int(sample.image.mean((1, 2)).argmax())


def test_a_sample_depends_on_seed_epoch_and_index_alone(photos):
    source = open_folder(photos).train
    samples = train_samples(source, AUGMENTED)
    first = samples[2, 5].image
    np.random.seed(99), torch.manual_seed(99)
    samples[0, 1]
    assert np.array_equal(first, samples[2, 5].image)
    assert not np.array_equal(first, samples[3, 5].image)
    assert not np.array_equal(first, train_samples(source, AUGMENTED, seed=8)[2, 5].image)
    assert (len(samples), samples[2, 5].target, samples.name(5)) == (36, 0, source.name(5))


def test_evaluation_samples_are_the_same_in_every_epoch(photos):
    samples = eval_samples(open_folder(photos).val)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    assert np.array_equal(samples[0, 7].image, samples[4, 7].image)
    assert torch.equal(torch.get_rng_state(), before)
    assert (len(samples), samples[0, 7].target, samples[0, 7].erased, samples[0, 7].number) == (15, 1, (), 7)


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
            assert colour_of(sample) == sample.target
            assert bool(sample.bad) == (index % 8 == 3)
            if sample.bad:
                assert sample.bad.subject.endswith(f"class_{index // 8}/3.png") and sample.number // 8 == sample.target
                replaced.append((index // 8, sample.target))
                assert samples[epoch, index].target == sample.target  # determined by epoch and index
    assert any(bad != stand_in for bad, stand_in in replaced)


def test_fault_38_unreadable_images_are_not_evaluated(colours):
    samples = eval_samples(colours.val, on_bad="skip")
    found = [samples[0, index] for index in range(24)]
    skipped = [index for index, sample in enumerate(found) if isinstance(sample, Skipped)]
    assert skipped == [3, 11, 19] and found[3].bad.subject.endswith("class_0/3.png")
    batch = Collator(stack)(found[:12])
    assert batch.samples == (0, 1, 2, 4, 5, 6, 7, 8, 9, 10) and batch.targets.tolist() == [0] * 7 + [1] * 3
    assert [error.subject.split("val/")[1] for error in batch.bad] == ["class_0/3.png", "class_1/3.png"]
    assert Collator(stack)(found[3:4]).samples == ()  # nothing is left of this one


def test_fault_38_a_folder_without_readable_images_ends_the_run(own_photos):
    for file in (own_photos / "train").rglob("*.jpg"):
        file.write_bytes(b"")
    samples = train_samples(open_folder(own_photos).train, PLAIN, on_bad="skip")
    error = samples[0, 0]
    assert error.subject.startswith(str(own_photos / "train")) and "20 replacements" in error.problem


def test_the_first_error_takes_the_place_of_its_batch(colours):
    first, second = DataError("a", "unreadable"), DataError("b", "unreadable")
    assert Collator(stack)([train_samples(colours.train)[0, 0], first, second]) is first
