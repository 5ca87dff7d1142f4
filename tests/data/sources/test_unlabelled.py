"""Folders of images without labels."""

import pytest

from data.sources.unlabelled import UnlabelledStore
from tests.tools.builders import open_data, open_validation
from utils.errors import DataError


def test_any_folder_is_a_training_set(photos):
    store = UnlabelledStore(photos / "train")
    source = store.open("train")
    assert len(source) == 36 and source.class_names == () and source.counts() == []
    assert source.read(0) and source.label(35) == 0
    assert [source.name(i) for i in range(36)] == sorted(map(str, (photos / "train").rglob("*.jpg")))
    assert store.has("train") and not store.has("val")


def test_train_and_val_are_splits_and_class_folders_mean_nothing(photos, caplog):
    caplog.set_level("INFO")
    sources = open_data("imagenet", photos, labelled=False)
    assert len(sources.train) == 36 and sources.val is not None and len(sources.val) == 15
    assert "36 training and 15 validation samples, unlabelled" in caplog.text
    assert sources.identity()[:2] == ((), ())
    assert len(open_validation(photos, labelled=False)) == 15


def test_without_validation_data_a_folder_is_trained_on_alone(photos):
    sources = open_data("imagenet", photos / "train", labelled=False)
    assert len(sources.train) == 36 and sources.val is None
    assert open_data("imagenet", photos, labelled=False, validate=False).val is None


def test_changed_files_change_the_fingerprint(own_photos):
    before = open_data("imagenet", own_photos, labelled=False).train.fingerprint()
    next((own_photos / "train").rglob("*.jpg")).unlink()
    assert open_data("imagenet", own_photos, labelled=False).train.fingerprint() != before


def test_a_folder_without_images_is_rejected(tmp_path):
    with pytest.raises(DataError, match="no images: .*--data-path"):
        UnlabelledStore(tmp_path).open("train")
    with pytest.raises(DataError, match="no such folder"):
        UnlabelledStore(tmp_path / "gone").open("train")


def test_labelled_sources_keep_their_classes(photos):
    assert len(open_data("digits", photos.parent / "digits", labelled=False).class_names) == 10
