"""Finding the store of a dataset; the ranks compare what they see."""

from dataclasses import replace

from data.sources.open import SourceOptions, check_ranks, find_store, some_samples
from data.sources.tar import TarStore
from data.sources.zip import ZipStore
from tests.data.sources.storages import as_tar, as_zip
from tests.tools.builders import open_folder
from tests.tools.errors import raises
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
    other = {"DATA.DATA_PATH": "35 training samples with digest x"}

    def gather(self, value):
        return [value, ("elsewhere", other)]

    monkeypatch.setattr(World, "gather_objects", gather)
    check_ranks(World(), {"training": train})  # a single process
    shown = f"36 training samples with digest {train.fingerprint()[:16]} on rank 0"
    with raises(DistributedError, "DATA.DATA_PATH", "35 training samples with digest x on rank 1 (elsewhere)", shown):
        check_ranks(replace(World(), size=2), {"training": train, "validation": None})
