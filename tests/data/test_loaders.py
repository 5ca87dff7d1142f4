"""Batches depend on counters alone: not on workers, ranks, or where an epoch was entered."""

import pytest
import torch

from data.loaders import EvalLoader, TrainLoader, keep
from data.pipeline.transforms import EvalTransformOptions
from tasks.classification.mixing import MixingOptions, build_mixing
from tasks.simmim.masking import Masking, MaskingOptions
from tests.tools.builders import AUGMENTED, loading, open_folder, pipeline, shape
from tests.tools.errors import raises
from utils.distributed.world import World
from utils.errors import DataError, ResourceError
from utils.preprocessing import Preprocessing

MIXING = MixingOptions(0.8, 1.0, None, prob=1.0, switch_prob=0.5, mode="batch", label_smoothing=0.1)


def train_loader(photos, rank=0, world=1, on_device=None, batch_size=4, accumulation=1, **loader):
    """Args: on_device: mixing if None."""
    source = open_folder(photos).train
    own = pipeline(AUGMENTED, on_device=on_device or build_mixing(3, MIXING, (32, 32)))
    epoch_shape = shape(len(source), batch_size, accumulation, world)
    options = loading(batch_size=batch_size, pin_memory=True, **loader)
    return TrainLoader(source, own, options, epoch_shape, World(rank, world))


def eval_loader(photos, rank=0, world=1, channels=3, **loader):
    own = Preprocessing() if channels == 3 else Preprocessing((0.5,) * channels, (0.5,) * channels)
    val = EvalTransformOptions(size=(32, 32), channels=channels)
    return EvalLoader(
        open_folder(photos).val, pipeline(val=val, preprocessing=own), loading(**loader), World(rank, world)
    )


def assert_equal(a, b):
    assert len(a) == len(b) > 0
    for x, y in zip(a, b, strict=True):
        assert torch.equal(x.images, y.images) and torch.equal(x.targets, y.targets)
        assert (x.samples, x.weight, x.ends_update) == (y.samples, y.weight, y.ends_update)


@pytest.mark.parametrize("workers", [1, 2])
def test_fault_52_batches_are_the_same_for_every_number_of_workers(photos, workers):
    alone, others = train_loader(photos), train_loader(photos, workers=workers)
    for epoch in (0, 1):  # workers live on into the second epoch
        assert_equal(list(alone.epoch(epoch)), list(others.epoch(epoch)))


def test_fault_52_augmentations_differ_between_epochs_and_samples(photos):
    loader = train_loader(photos, on_device=keep, batch_size=36)
    (first,), (second,) = loader.epoch(0), loader.epoch(1)
    images = torch.cat([first.images, second.images]).flatten(1)
    assert len(images.unique(dim=0)) == 72


def test_an_epoch_can_be_entered_at_any_update(photos):
    loader = train_loader(photos, workers=2, accumulation=2)
    whole = list(loader.epoch(3))
    assert_equal(whole[4:], list(loader.epoch(3, first_update=2)))
    assert_equal(whole[4:6], list(loader.epoch(3, 2, 3)))  # workers live on


def test_masks_are_those_of_the_update_for_any_number_of_workers_and_after_a_resume(photos):
    masking = Masking(MaskingOptions((32, 32), square=8, ratio=0.6))
    whole = list(train_loader(photos, on_device=masking).epoch(1))
    for start, workers in ((0, 1), (0, 2), (4, 0)):
        assert_equal(whole[start:], list(train_loader(photos, on_device=masking, workers=workers).epoch(1, start)))
    masks = torch.cat([batch.targets for batch in whole])
    assert masks.dtype == torch.bool and masks.shape[1:] == (4, 4)
    assert len(masks.flatten(1).unique(dim=0)) > 30  # of 36


def test_samples_are_found_by_their_index_in_the_whole_dataset(photos):
    loaders = [eval_loader(photos, rank, 2) for rank in range(2)]
    first, _ = loaders[1]
    assert first.samples == (1, 3, 5, 7)
    batch = loaders[0].batch([1, 3])
    assert batch.samples == (1, 3) and torch.equal(batch.images, first.images[:2])
    assert torch.equal(batch.targets, first.targets[:2]) and loaders[0].sample(3).image.shape == (3, 32, 32)


def test_a_batch_of_chosen_samples_leaves_out_what_is_skipped(own_photos):
    files = sorted((own_photos / "val").rglob("*.jpg"))
    files[1].write_bytes(b"")
    loader = eval_loader(own_photos, on_bad="skip")
    assert loader.batch([0, 1, 2]).samples == (0, 2) and loader.batch([1]) is None


def test_two_ranks_see_what_one_sees(photos):
    alone = list(train_loader(photos, on_device=keep, batch_size=8).epoch(0))
    ranks = [list(train_loader(photos, rank, 2, on_device=keep).epoch(0)) for rank in range(2)]
    for whole, first, second in zip(alone, *ranks, strict=True):
        assert torch.equal(whole.images, torch.cat([first.images, second.images]))
        assert torch.equal(whole.targets, torch.cat([first.targets, second.targets]))


def test_an_evaluation_in_between_does_not_change_the_draws_of_training(photos):
    """The forward pass after a batch draws what the batch's seed says."""
    drawn = []
    for evaluate in (False, True):
        for i, _ in enumerate(train_loader(photos).epoch(0)):
            drawn.append(torch.rand(1).item())
            if evaluate and i == 2:
                assert len(list(eval_loader(photos))) == 4
    assert drawn[: len(drawn) // 2] == drawn[len(drawn) // 2 :]


def test_evaluation_draws_no_random_number(photos):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    batches = list(eval_loader(photos, workers=1))
    assert torch.equal(before, torch.get_rng_state())
    assert sum(map(len, batches)) == 15


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_images_have_the_channels_of_the_model(photos, channels):
    assert next(iter(eval_loader(photos, channels=channels))).images.shape == (4, channels, 32, 32)


def test_ranks_share_the_evaluation(photos):
    shards = [eval_loader(photos, rank, 2, batch_size=3) for rank in range(2)]
    assert [len(shard) for shard in shards] == [3, 3]
    targets = [torch.cat([batch.targets for batch in shard]).tolist() for shard in shards]
    assert targets == [[0, 0, 0, 1, 1, 2, 2, 2], [0, 0, 1, 1, 1, 2, 2]]


def test_fault_38_unreadable_validation_images_are_left_out(own_photos):
    (own_photos / "val/class_1/photo_2.jpg").write_bytes(b"no image")
    loader = eval_loader(own_photos, on_bad="skip")
    batches = list(loader)
    assert torch.cat([batch.targets for batch in batches]).tolist() == [0] * 5 + [1] * 4 + [2] * 5
    assert [i for batch in batches for i in batch.samples] == [i for i in range(15) if i != 7]
    with raises(DataError, own_photos / "val/class_1/photo_2.jpg"):
        loader.sample(7)


def test_a_batch_without_a_readable_image_is_left_out(own_photos):
    for photo in sorted((own_photos / "val/class_0").iterdir())[:4]:
        photo.write_bytes(b"")
    loader = eval_loader(own_photos, on_bad="skip")
    assert [len(batch) for batch in loader] == [4, 4, 3] and len(loader) == 4


@pytest.mark.parametrize("build", [train_loader, eval_loader])
def test_fault_53_too_little_shared_memory_is_noticed_before_workers_start(photos, monkeypatch, build):
    monkeypatch.setattr("data.pipeline.workers.PREFETCH", 10**9)
    with raises(ResourceError, "DATA.NUM_WORKERS", "4 loader workers", "/dev/shm"):
        build(photos, workers=4)
    assert len(list(build(photos).epoch(0) if build is train_loader else build(photos))) in (9, 4)
