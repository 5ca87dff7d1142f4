"""How an epoch divides into updates, by counting."""

import pytest
import timm
import torch
from torch import nn

from tests.conftest import run_program
from tests.tools.builders import small
from tests.tools.errors import raises
from utils.batches import EpochShape, check_smallest_batch
from utils.errors import ConfigError


@pytest.mark.parametrize(
    ("size", "batch", "updates"),
    [(1_281_167, 1024, 1251), (40, 8, 5), (41, 8, 5), (42, 8, 6), (3, 8, 1), (1, 8, 1), (7, 3, 3)],
)
def test_updates_of_an_epoch(size, batch, updates):
    """A remainder of at least a quarter of a global batch is an update of its own; a smaller one is dropped."""
    assert EpochShape(size, batch, 1, 1).updates == updates


@pytest.mark.parametrize(("world", "batch", "accumulation"), [(1, 16, 1), (2, 8, 1), (1, 4, 4), (4, 2, 2)])
def test_fault_32_the_updates_depend_on_the_global_batch_alone(world, batch, accumulation):
    shape = EpochShape(52, batch, accumulation, world)
    assert (shape.global_batch, shape.updates, shape.samples) == (16, 4, 52)
    assert [shape.update_size(i) for i in range(4)] == [16, 16, 16, 4]


@pytest.mark.parametrize(("size", "samples"), [(48, 48), (51, 48), (52, 52), (3, 3)])
def test_samples_that_an_epoch_uses(size, samples):
    shape = EpochShape(size, 16, 1, 1)
    assert shape.samples == samples == sum(shape.update_size(i) for i in range(shape.updates))


@pytest.mark.parametrize(
    ("size", "batch", "accumulation", "world", "smallest"),
    [
        (64, 4, 1, 1, 4),
        (65, 4, 1, 1, 1),  # the remainder is a quarter of a batch
        (65, 8, 1, 1, 8),  # the remainder is dropped
        (66, 4, 1, 1, 2),
        (3, 8, 1, 1, 3),
        (69, 4, 4, 1, 1),  # an update of 4 and 1
        (70, 4, 1, 4, 1),  # 2, 2, 1, 1
        (66, 2, 1, 4, 1),  # 1, 1, and two ranks that repeat one
    ],
)
def test_the_smallest_micro_batch(size, batch, accumulation, world, smallest):
    assert EpochShape(size, batch, accumulation, world).smallest == smallest


def test_fault_49_one_image_is_too_little_for_batch_norm():
    odd, even = EpochShape(65, 4, 1, 1), EpochShape(64, 4, 1, 1)
    swin, model = small(), timm.create_model("resnet18", drop_path_rate=0.5).eval()
    other = nn.Sequential(nn.Bilinear(1, 1, 1), nn.BatchNorm1d(1))  # takes two inputs
    before, state = {name: t.clone() for name, t in model.state_dict().items()}, torch.get_rng_state()
    with raises(ConfigError, "DATA.BATCH_SIZE", "BatchNorm", "ResNet"):
        check_smallest_batch(model, odd, (32, 32))  # its last maps have one position
    check_smallest_batch(model, even, (32, 32))
    check_smallest_batch(model, odd, (33, 33))
    check_smallest_batch(swin, odd, (32, 32))
    check_smallest_batch(other, odd, (32, 32))
    assert not model.training and torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())


@pytest.mark.seconds
def test_fault_49_batch_norm_on_one_image_is_refused_at_the_start(photos, tiny_yaml, tmp_path):
    options = ["--opts", "MODEL.TYPE", "timm", "MODEL.TIMM.NAME", "resnet18", "DATA.BATCH_SIZE", 1]
    done = run_program("--cfg", tiny_yaml, "--data-path", photos, "--output", tmp_path, *options)
    assert done.code == 2 and done.error.startswith("error: DATA.BATCH_SIZE: ")
