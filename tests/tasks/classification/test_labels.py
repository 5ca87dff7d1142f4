"""Opening a labelled dataset: the same samples from every storage, one class map for both splits, every error."""

import logging
import multiprocessing
import shutil
from dataclasses import replace

import pytest
import torch
from torch.utils.data import DataLoader

from configs.loading import load_config
from configs.options import parse_command_line
from data.loaders import TrainLoader
from data.sources.open import SourceOptions
from tasks.classification.labels import chosen_classes, open_train
from tests.conftest import ROOT
from tests.data.sources.storages import (
    KINDS,
    as_22k_list,
    as_folder,
    as_shards,
    as_tar,
    as_zip,
    as_zip_with_map,
    files,
    opened,
)
from tests.tools.builders import AUGMENTED, labels_of, loading, open_data, open_folder, open_validation, pipeline, shape
from tests.tools.errors import raises
from utils.distributed.world import World
from utils.errors import DataError


@pytest.mark.parametrize("kind", KINDS)
def test_every_storage_gives_the_same_samples(photos, tmp_path, kind):
    sources = opened(kind, photos, tmp_path)
    for split, source in (("train", sources.train), ("val", sources.val)):
        expected = files(photos, split)
        assert labels_of(source) == [label for _, label in expected]
        assert [source[i].data for i in range(len(source))] == [(photos / split / n).read_bytes() for n, _ in expected]
        assert source.counts() == [len(expected) // 3] * 3
    if kind is not as_shards:
        assert sources.class_names == ("class_0", "class_1", "class_2")


def test_one_class_alone_is_remarked_on(own_photos, caplog):
    for split in ("train", "val"):
        for other in ("class_1", "class_2"):
            shutil.rmtree(own_photos / split / other)
    open_folder(own_photos)
    assert "one class only, class_0: there is nothing to distinguish" in caplog.messages


@pytest.mark.parametrize("kind", [as_zip, as_zip_with_map])
def test_a_run_may_be_resumed_from_the_archive_of_its_folder(photos, tmp_path, kind):
    assert open_folder(photos).identity() == opened(kind, photos, tmp_path).identity()


class Reads:
    """Bytes and label of every sample of several sources, five times over."""

    def __init__(self, sources):
        self.samples = [(source, i) for source in sources for i in range(len(source))] * 5

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, number):
        source, i = self.samples[number]
        return source[i].data, source.label(i)


@pytest.fixture
def used(photos, tmp_path):
    """Validation splits of three storages, from which this process has already read."""
    sources = [opened(kind, photos, tmp_path / kind.__name__).val for kind in (as_folder, as_zip, as_tar)]
    for source in sources:
        _ = source[0]  # opens the archive
    return sources


def images_and_labels(photos):
    return [((photos / "val" / name).read_bytes(), label) for name, label in files(photos, "val")]


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("workers", [1, 2, 4])
def test_fault_48_forked_workers_share_storages_opened_before(photos, used, workers):
    context = multiprocessing.get_context("fork")
    loader = DataLoader(Reads(used), 4, num_workers=workers, multiprocessing_context=context, collate_fn=list)
    assert [sample for batch in loader for sample in batch] == images_and_labels(photos) * 3 * 5


def test_fault_48_spawned_processes_share_storages_opened_before(photos, used):
    expected = [image for image, _ in images_and_labels(photos)]
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        for source in used:
            assert [
                record.data for record in pool.map(source.__getitem__, list(range(len(source))) * 5, chunksize=4)
            ] == expected * 5


def options_of(*arguments):
    """As selected by the command line of the original."""
    parsed = parse_command_line(["--cfg", str(ROOT / "configs/swin_tiny.yaml"), *map(str, arguments)])
    return SourceOptions.from_config(load_config(parsed.cfg, parsed.overrides))


@pytest.mark.parametrize("kind", [as_zip, as_22k_list])
def test_a_run_trains_on_the_same_batches_from_archives_and_lists(photos, tmp_path, kind):
    """By the options of the command line; the augmentation depends on the index of a sample, not on its storage."""
    dataset, path, zipped = kind(photos, tmp_path)
    if zipped:
        options = options_of("--data-path", path, "--zip", "--cache-mode", "full")
        assert options == SourceOptions("imagenet", str(path), zipped=True, cache=True)
    else:
        options = options_of("--data-path", path, "--opts", "DATA.DATASET", dataset, "MODEL.NUM_CLASSES", 21841)
        assert (options.classes, options.zipped) == (21841, False)
    train = open_train(options, World()).train
    assert (len(train.class_names) == 21841) == (not zipped)
    flat = replace(AUGMENTED, auto_augment="none")
    loaders = [
        TrainLoader(source, pipeline(flat), loading(), shape(36), World())
        for source in (train, open_folder(photos).train)
    ]
    batches = list(zip(*(loader.epoch(0) for loader in loaders), strict=True))
    assert len(batches) == 9
    for ours, theirs in batches:
        assert torch.equal(ours.images, theirs.images) and torch.equal(ours.targets, theirs.targets)


def test_evaluation_needs_no_training_folder(own_photos):
    shutil.rmtree(own_photos / "train")
    names = ["class_0", "other", "class_1", "class_2"]
    assert set(labels_of(open_validation(own_photos, names=names))) == {0, 2, 3}
    assert open_validation(own_photos).class_names == ("class_0", "class_1", "class_2")
    with pytest.raises(DataError, match="train/"):
        open_folder(own_photos)


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        ({"path": ""}, ["quickstart.sh"]),
        ({"path": "/nowhere"}, ["/nowhere", "--data-path"]),
        ({"path": "/nowhere", "dataset": "digits"}, ["/nowhere", "--data-path"]),
        ({"dataset": "cifar"}, ["'cifar'"]),
        ({"dataset": "imagnet"}, ["did you mean imagenet?"]),
        ({"zipped": True}, ["train.zip"]),
        ({"dataset": "tar"}, ["train.tar"]),
        ({"dataset": "list"}, ["x/train_map.txt"]),
    ],
)
def test_missing_data_are_named(arguments, names):
    with pytest.raises(DataError) as caught:
        open_data(**{"dataset": "imagenet", "path": "x", **arguments})
    assert all(name in str(caught.value) for name in names), caught.value


def test_the_number_of_classes_can_be_demanded(photos):
    assert len(open_folder(photos, classes=3).class_names) == 3
    with raises(DataError, "MODEL.NUM_CLASSES", "has 3 classes, not 1000"):
        open_folder(photos, classes=1000)


def test_classes_beyond_the_data_are_numbered(photos):
    """A head of ten outputs, trained on data that had the first three classes."""
    val = open_validation(photos, classes=10)
    assert val.class_names[:4] == ("class_0", "class_1", "class_2", "class 3") and len(val.class_names) == 10
    assert set(labels_of(val)) == {0, 1, 2}


def test_training_without_validation_data(own_photos, caplog):
    shutil.rmtree(own_photos / "val")
    caplog.set_level(logging.INFO)
    assert open_folder(own_photos, validate=False).val is None
    assert "data: 36 training samples, 3 classes" in caplog.text
    with pytest.raises(DataError, match=r"(?=.*\bval/)(?=.*TEST.VALIDATE)"):
        open_folder(own_photos)


def test_what_was_opened_is_logged(photos, caplog):
    with caplog.at_level(logging.INFO):
        open_folder(photos)
        open_validation(photos)
    assert [record.getMessage() for record in caplog.records] == [
        "data: 36 training and 15 validation samples, 3 classes",
        "samples: photo_0.jpg (class_0), photo_0.jpg (class_1), photo_0.jpg (class_2)",
        "class map: the classes of train, in the order of their names",
        "data: 15 validation samples, 3 classes",
    ]


def test_the_class_map_of_an_evaluation(own_photos):
    usual = ["class_2", "other", "class_0", "class_1"]
    own = ("class_0", "class_1", "class_2")
    assert open_validation(own_photos, likely=usual).class_names == tuple(usual)
    assert open_validation(own_photos, likely=usual, classes=3).class_names == own
    for split in ("train", "val"):
        (own_photos / split / "class_0").rename(own_photos / split / "mine")
    (own_photos / "train" / "more").mkdir()
    copy = own_photos / "train/more/a.jpg"
    shutil.copy(next((own_photos / "train/mine").iterdir()), copy)
    assert open_validation(own_photos, likely=usual).class_names == ("class_1", "class_2", "mine", "more")  # train's
    shutil.rmtree(own_photos / "train")
    assert open_validation(own_photos, likely=usual).class_names == ("class_1", "class_2", "mine")


def test_chosen_classes(photos, tmp_path):
    source = open_validation(photos)
    assert chosen_classes("", source) == [] and chosen_classes("present", source) == [0, 1, 2]
    (tmp_path / "names.txt").write_text("class_2\n\nclass_0\nclass_1\n")
    assert chosen_classes(str(tmp_path / "names.txt"), source) == [0, 1, 2]
    (tmp_path / "names.txt").write_text("class_2\n")
    with raises(DataError, tmp_path / "names.txt", "val/"):
        chosen_classes(str(tmp_path / "names.txt"), source)
    with raises(DataError, "/dev/zero", "not a regular file"):
        chosen_classes("/dev/zero", source)
    (tmp_path / "names.txt").write_text("class_9\n")
    with raises(DataError, tmp_path / "names.txt", "class_9"):
        chosen_classes(str(tmp_path / "names.txt"), source)
    with raises(DataError, tmp_path / "gone.txt", "No such file"):
        chosen_classes(str(tmp_path / "gone.txt"), source)
    (tmp_path / "names.txt").write_text("class_0", encoding="utf-16")
    with raises(DataError, tmp_path / "names.txt", "not UTF-8"):
        chosen_classes(str(tmp_path / "names.txt"), source)


@pytest.mark.parametrize("split", ["train", "val"])
def test_the_folder_of_one_split_is_not_a_dataset(photos, split):
    with pytest.raises(DataError, match=rf"(?=.*{photos}/{split}\b)(?=.*{photos}(?!/))"):
        open_folder(photos / split)


def test_a_split_under_another_name_is_pointed_out(own_photos):
    (own_photos / "val").rename(own_photos / "validation")
    with pytest.raises(DataError, match=r"(?=.*\bval/)(?=.*\bvalidation/)(?=.*rename)"):
        open_folder(own_photos)


def test_classes_without_validation_samples_are_named(own_photos, caplog):
    shutil.rmtree(own_photos / "val" / "class_1")
    open_folder(own_photos)
    assert "1 classes have no validation samples: class_1" in caplog.text
