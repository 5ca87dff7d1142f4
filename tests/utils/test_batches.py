"""How an epoch divides into updates, by counting."""

import pytest

from utils.batches import EpochShape


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
