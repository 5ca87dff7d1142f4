"""Folders of images without labels."""

from data.sources.unlabelled import UnlabelledStore
from tests.tools.errors import raises
from utils.errors import DataError


def test_any_folder_is_a_training_set(photos):
    store = UnlabelledStore(photos / "train")
    source = store.open("train")
    assert len(source) == 36 and source.class_names == () and source.counts() == []
    assert source[0].data and source[35].target is None
    assert [source.name(i) for i in range(36)] == sorted(map(str, (photos / "train").rglob("*.jpg")))
    assert store.has("train") and not store.has("val")


def test_a_folder_without_images_is_rejected(tmp_path):
    with raises(DataError, "--data-path", f"no images in {tmp_path}"):
        UnlabelledStore(tmp_path).open("train")
    with raises(DataError, "--data-path", tmp_path / "gone"):
        UnlabelledStore(tmp_path / "gone").open("train")
