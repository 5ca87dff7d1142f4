"""Finding the store of a dataset; the ranks compare what they see."""

from dataclasses import replace

import pytest

from data.sources.open import SourceOptions, check_ranks, find_store, some_samples
from data.sources.tar import TarStore
from data.sources.zip import ZipStore
from tests.data.sources.storages import as_tar, as_zip
from tests.tools.builders import open_folder
from utils.distributed.world import World
from utils.errors import DistributedError


def test_the_store_follows_from_dataset_and_options(photos, tmp_path):
    for kind, expected in ((as_zip, ZipStore), (as_tar, TarStore)):
        (tmp_path / kind.__name__).mkdir()
        dataset, path, zipped = kind(photos, tmp_path / kind.__name__)
        store = find_store(SourceOptions(dataset, str(path), zipped), ("train", "val"))
        assert isinstance(store, expected) and store.has("train") and store.has("val")


def test_samples_that_are_named_are_spread_over_the_split(photos):
    assert some_samples(open_folder(photos).train, 4) == [0, 9, 18, 27]
    assert some_samples(["a", "b"], 2) == [0, 1]


def test_ranks_that_see_other_samples_are_named(photos, monkeypatch):
    train = open_folder(photos).train
    other = {"the number of training samples": "35", "the digest of names and targets of the training samples": "x"}

    def gather(self, value):
        return [value, ("elsewhere", other)]

    monkeypatch.setattr(World, "gather_objects", gather)
    check_ranks(World(), {"training": train})  # a single process
    with pytest.raises(DistributedError, match=r"the number of training samples is 35 on rank 1 .*DATA\.DATA_PATH"):
        check_ranks(replace(World(), size=2), {"training": train, "validation": None})
