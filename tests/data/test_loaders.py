"""Batches depend on counters alone: not on workers, processes, or where an epoch was entered."""

import os

import pytest
import torch

from data.errors import DataError
from data.loaders import Randomness, build_eval_loader, build_train_loader
from data.sources import open_sources
from tests.data.test_transforms import PLAIN
from utils.distributed import World
from utils.run_plan import RunPlan
from utils.seeding import derive, seed_all

AUGMENTED = {
    **PLAIN,
    "auto_augment": "rand-m9-mstd0.5-inc1",
    "crop": {"scale": (0.1, 1.0), "ratio": (0.75, 1.33), "hflip": 0.5},
    "erase": {"re_prob": 0.5, "re_mode": "pixel", "re_count": 1},
}
MIXING = {
    "mixup": 0.8,
    "cutmix": 1.0,
    "minmax": None,
    "label_smoothing": 0.1,
    "when": {"prob": 1.0, "switch_prob": 0.5, "mode": "batch"},
}
NO_MIXING = {**MIXING, "mixup": 0.0, "cutmix": 0.0}


def plan(size, world=1, batch_size=4, accumulation=1):
    fields = dict.fromkeys(RunPlan.__dataclass_fields__, 0)
    return RunPlan(
        **{**fields, "world": world, "batch_size": batch_size, "accumulation": accumulation, "train_size": size}
    )


def train_loader(photos, *place, **options):
    return loader_of(open_sources("imagenet", str(photos), zipped=False, training=True).train, *place, **options)


def loader_of(source, rank=0, world=1, workers=0, mixing=MIXING, working=None, **split):
    return build_train_loader(
        source,
        plan(len(source), world, **split),
        World(rank, world),
        Randomness(7, seed_all, derive),
        transform=AUGMENTED,
        channels=3,
        mixing=mixing,
        settings={"workers": workers, "pin_memory": True, **(working or {})},
    )


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
    loader = train_loader(photos, mixing=NO_MIXING, batch_size=36)
    (first,), (second,) = loader.epoch(0), loader.epoch(1)
    images = torch.cat([first.images, second.images]).flatten(1)
    assert len(images.unique(dim=0)) == 72


def test_an_epoch_can_be_entered_at_any_update(photos):
    loader = train_loader(photos, workers=2, accumulation=2)
    whole = list(loader.epoch(3))
    assert_equal(whole[4:], list(loader.epoch(3, first_update=2)))


def test_two_processes_see_what_one_sees(photos):
    alone = list(train_loader(photos, mixing=NO_MIXING, batch_size=8).epoch(0))
    ranks = [list(train_loader(photos, rank, 2, mixing=NO_MIXING).epoch(0)) for rank in range(2)]
    for whole, first, second in zip(alone, *ranks, strict=True):
        assert torch.equal(whole.images, torch.cat([first.images, second.images]))
        assert torch.equal(whole.targets, torch.cat([first.targets, second.targets]))


def test_neither_loader_leaves_its_mark_on_the_generators_of_another(photos):
    """The forward pass after a batch draws what the batch's seed says, whatever was evaluated in between."""
    drawn = []
    for evaluate in (False, True):
        loader = train_loader(photos)
        for i, _ in enumerate(loader.epoch(0)):
            drawn.append(torch.rand(1).item())
            if evaluate and i == 2:
                source = open_sources("imagenet", str(photos), zipped=False, training=True).val
                assert len(list(eval_loader(source))) == 4
    assert drawn[: len(drawn) // 2] == drawn[len(drawn) // 2 :]


def eval_loader(source, rank=0, world=1, workers=0, batch_size=4, channels=3, upright=False, working=None):
    return build_eval_loader(
        source,
        World(rank, world),
        transform={"size": 32, "interpolation": "bicubic", "crop": True, "upright": upright},
        channels=channels,
        batch_size=batch_size,
        settings={"workers": workers, "pin_memory": False, **(working or {})},
    )


def test_evaluation_draws_no_random_number(photos):
    source = open_sources("imagenet", str(photos), zipped=False, training=True).val
    torch.manual_seed(0)
    before = torch.get_rng_state()
    batches = list(eval_loader(source, workers=1))
    assert torch.equal(before, torch.get_rng_state())
    assert sum(len(images) for images, _ in batches) == 15


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_images_take_the_models_number_of_channels(photos, channels):
    source = open_sources("imagenet", str(photos), zipped=False, training=True).val
    (colour, _), (images, _) = (next(iter(eval_loader(source, channels=c))) for c in (3, channels))
    assert images.shape[1] == channels
    expected = colour.mean(1) if channels == 1 else colour[:, 0]
    torch.testing.assert_close(images[:, channels - 1 if channels == 4 else 0], expected)


class ParentOfWorker:
    """A source that answers with the process that made the reading one."""

    class_names = ("any",)

    def __len__(self):
        return 1

    def read(self, index):
        raise DataError(str(os.getppid()))

    def name(self, index):
        return ""

    def label(self, index):
        return 0


@pytest.mark.parametrize("kind", ["train", "eval"])
def test_workers_are_not_forked_from_a_process_with_threads(kind):
    # a forked child can inherit a lock from a thread that it does not have: runs hung at the start of an evaluation
    source = ParentOfWorker()
    batches = eval_loader(source, workers=1) if kind == "eval" else loader_of(source, workers=1).epoch(0)
    with pytest.raises(DataError) as parent:
        list(batches)
    assert int(str(parent.value)) != os.getpid()


@pytest.mark.parametrize("workers", [0, 2])
def test_fault_38_a_bad_image_ends_the_epoch_with_its_path(own_photos, workers):
    bad = own_photos / "train" / "class_1" / "photo_3.jpg"
    bad.write_bytes(bad.read_bytes()[:500])
    with pytest.raises(DataError) as caught:
        list(train_loader(own_photos, workers=workers).epoch(0))
    assert str(bad) in str(caught.value) and "Traceback" not in str(caught.value)
