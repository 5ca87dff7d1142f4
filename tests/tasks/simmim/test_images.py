"""Images for pre-training: any folder, or a labelled dataset whose labels are not used."""

from data.sources.open import SourceOptions
from tasks.simmim.images import open_images
from utils.distributed.world import World


def opened(path, splits=("train", "val"), dataset="imagenet", **more):
    return open_images(SourceOptions(dataset, str(path), **more), splits, World())


def test_train_and_val_are_splits_and_class_folders_mean_nothing(photos, caplog):
    caplog.set_level("INFO")
    data = opened(photos)
    assert data.train_size == 36 and len(data.val) == 15 and data.train[0].target is None
    assert "36 training and 15 validation samples, unlabelled" in caplog.text
    assert data.info.as_dict() == {"data_fingerprint": data.train.fingerprint()} and data.info.classes == 0
    only = opened(photos, ("val",))
    assert only.train is None and len(only.val) == 15


def test_without_validation_data_a_folder_is_trained_on_alone(photos):
    data = opened(photos / "train")
    assert data.train_size == 36 and data.val is None
    assert opened(photos, validate=False).val is None


def test_changed_files_change_the_fingerprint(own_photos):
    before = opened(own_photos).info.fingerprint
    next((own_photos / "train").rglob("*.jpg")).unlink()
    assert opened(own_photos).info.fingerprint != before


def test_the_classes_of_a_labelled_dataset_are_counted_only(photos):
    data = opened(photos.parent / "digits", dataset="digits")
    assert data.info.classes == 10 and data.train_size == 1437
