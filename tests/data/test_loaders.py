"""Batches depend on counters alone: not on workers, ranks, or where an epoch was entered."""

from dataclasses import replace

import pytest
import torch

from data.loaders import build_eval_loader, build_train_loader
from data.pipeline.masking import MaskingOptions
from data.pipeline.mixing import MixingOptions
from data.pipeline.transforms import EvalTransformOptions
from tests.tools.builders import AUGMENTED, open_folder, pipeline, shape
from utils.distributed.world import World
from utils.errors import ResourceError
from utils.preprocessing import Preprocessing

MIXING = MixingOptions(0.8, 1.0, None, prob=1.0, switch_prob=0.5, mode="batch", label_smoothing=0.1)


def train_loader(photos, rank=0, world=1, mixing=MIXING, batch_size=4, accumulation=1, **loader):
    source = open_folder(photos).train
    options = replace(pipeline(AUGMENTED, batch_size=batch_size, pin_memory=True, **loader), batch=mixing)
    epoch_shape = shape(len(source), batch_size, accumulation, world)
    return build_train_loader(source, epoch_shape, World(rank, world), options)


def eval_loader(photos, rank=0, world=1, channels=3, **loader):
    own = Preprocessing() if channels == 3 else Preprocessing((0.5,) * channels, (0.5,) * channels)
    options = pipeline(val=EvalTransformOptions(size=(32, 32), channels=channels), **loader)
    return build_eval_loader(open_folder(photos).val, World(rank, world), replace(options, preprocessing=own))


def assert_equal(a, b):
    assert len(a) == len(b) > 0
    for x, y in zip(a, b, strict=True):
        assert torch.equal(x.images, y.images) and torch.equal(x.targets, y.targets)
        assert (x.weight, x.ends_update) == (y.weight, y.ends_update)


@pytest.mark.parametrize("workers", [1, 2])
def test_fault_52_batches_are_the_same_for_every_number_of_workers(photos, workers):
    alone, others = train_loader(photos), train_loader(photos, workers=workers)
    for epoch in (0, 1):  # workers live on into the second epoch
        assert_equal(list(alone.epoch(epoch)), list(others.epoch(epoch)))


def test_fault_52_augmentations_differ_between_epochs_and_samples(photos):
    loader = train_loader(photos, mixing=None, batch_size=36)
    (first,), (second,) = loader.epoch(0), loader.epoch(1)
    images = torch.cat([first.images, second.images]).flatten(1)
    assert len(images.unique(dim=0)) == 72


def test_an_epoch_can_be_entered_at_any_update(photos):
    loader = train_loader(photos, workers=2, accumulation=2)
    whole = list(loader.epoch(3))
    assert_equal(whole[4:], list(loader.epoch(3, first_update=2)))


def test_masks_are_those_of_the_update_for_any_number_of_workers_and_after_a_resume(photos):
    masking = MaskingOptions((32, 32), square=8, ratio=0.6)
    whole = list(train_loader(photos, mixing=masking).epoch(1))
    for start, workers in ((0, 1), (0, 2), (4, 0)):
        assert_equal(whole[start:], list(train_loader(photos, mixing=masking, workers=workers).epoch(1, start)))
    masks = torch.cat([batch.targets for batch in whole])
    assert masks.dtype == torch.bool and masks.shape[1:] == (4, 4)
    assert len(masks.flatten(1).unique(dim=0)) > 30  # of 36


def test_masks_of_evaluation_belong_to_the_samples(photos):
    source = open_folder(photos).val
    options = replace(pipeline(), batch=MaskingOptions((32, 32), square=8, ratio=0.6))
    loaders = [build_eval_loader(source, World(rank, 2), options) for rank in range(2)]
    masks = loaders[0].masks([0, 3, 5])
    assert torch.equal(masks[1:], loaders[1].masks([3, 5])) and not torch.equal(masks[0], masks[1])
    images = torch.cat([images for images, _ in loaders[1]])
    assert torch.equal(loaders[0].normalized([1, 3]), images[:2]) and loaders[0].samples == 15


def test_two_ranks_see_what_one_sees(photos):
    alone = list(train_loader(photos, mixing=None, batch_size=8).epoch(0))
    ranks = [list(train_loader(photos, rank, 2, mixing=None).epoch(0)) for rank in range(2)]
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
    assert sum(len(images) for images, _ in batches) == 15


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_images_have_the_channels_of_the_model(photos, channels):
    images, _ = next(iter(eval_loader(photos, channels=channels)))
    assert images.shape == (4, channels, 32, 32)


def test_ranks_share_the_evaluation(photos):
    shards = [eval_loader(photos, rank, 2, batch_size=3) for rank in range(2)]
    assert [len(shard) for shard in shards] == [3, 3]
    targets = [torch.cat([targets for _, targets in shard]).tolist() for shard in shards]
    assert targets == [[0, 0, 0, 1, 1, 2, 2, 2], [0, 0, 1, 1, 1, 2, 2]]


def test_fault_38_unreadable_validation_images_have_the_target_minus_one(own_photos):
    (own_photos / "val/class_1/photo_2.jpg").write_bytes(b"no image")
    targets = torch.cat([targets for _, targets in eval_loader(own_photos, on_bad="skip")])
    assert targets.tolist() == [0] * 5 + [1, 1, -1, 1, 1] + [2] * 5


@pytest.mark.parametrize("build", [train_loader, eval_loader])
def test_fault_53_too_little_shared_memory_is_noticed_before_workers_start(photos, monkeypatch, build):
    monkeypatch.setattr("data.pipeline.workers.PREFETCH", 10**9)
    with pytest.raises(ResourceError, match=r"/dev/shm has .* MiB left, 4 loader workers need .*DATA.NUM_WORKERS"):
        build(photos, workers=4)
    assert len(list(build(photos).epoch(0) if build is train_loader else build(photos))) in (9, 4)
