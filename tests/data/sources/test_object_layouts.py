"""The layouts of COCO, Pascal VOC and YOLO, and what is wrong with them."""

import json
import os
import shutil

import numpy as np
import pytest
from PIL import Image

from data.pipeline.decoding import ORIENTATION, decode
from data.sources.object_store import ObjectStore
from tests.conftest import ROOT
from tests.data.sources.object_sets import made, save, voc_text, write, write_coco, write_voc, write_yolo
from tests.tools.errors import raises
from utils.errors import DataError

TWO = {"train": 2, "val": 1}


def coco_file(root, split="train"):
    return root / f"annotations/instances_{split}2017.json"


def changed(root, change, split="train"):
    contents = json.loads(coco_file(root, split).read_text())
    change(contents)
    coco_file(root, split).write_text(json.dumps(contents))


@pytest.mark.parametrize(
    ("annotations", "images"),
    [
        ("annotations/train.json", "train"),
        ("annotations/instances_train.json", "images/train"),
        ("train/_annotations.coco.json", "train"),
        ("train.json", "images"),
        ("annotations/person_train.json", "train/images"),
    ],
)
def test_usual_places_of_coco_files_are_found(tmp_path, annotations, images):
    write_coco(tmp_path / "made", {"train": 2})
    root = tmp_path / "own"
    write(root / annotations, coco_file(tmp_path / "made").read_text())
    (root / images).mkdir(parents=True, exist_ok=True)
    for path in (tmp_path / "made/train2017").iterdir():
        path.rename(root / images / path.name)
    source = ObjectStore(root).open("train")
    assert len(source) == 2 and source[0].name == str(root / images / "train_0.png")


def test_a_validation_file_may_number_its_classes_otherwise(tmp_path):
    write_coco(tmp_path, TWO)
    changed(tmp_path, lambda c: c["categories"].reverse(), "val")
    source = ObjectStore(tmp_path).open("val", ("red", "blue"))
    assert source.category_ids == (44, 2)
    assert [one.label for one in source.image(0).instances] == [label for label, *_ in made("val", 1)[0].objects]
    source = ObjectStore(tmp_path).open("val", ("green", "blue", "red"))
    assert source.class_names == ("green", "blue", "red") and source.category_ids == (45, 2, 44)


def test_a_class_that_training_has_not_is_an_error(tmp_path):
    write_coco(tmp_path, TWO)
    with raises(DataError, coco_file(tmp_path, "val"), "class 'red'", "did you mean rod?"):
        ObjectStore(tmp_path).open("val", ("rod", "blue"))


def test_images_of_a_file_must_exist_inside_the_dataset(tmp_path):
    write_coco(tmp_path, TWO)
    changed(tmp_path, lambda c: c["images"][1].update(file_name="gone.png"))
    with raises(DataError, coco_file(tmp_path), "1 of 2 images", "gone.png"):
        ObjectStore(tmp_path).open("train")
    changed(tmp_path, lambda c: c["images"][1].update(file_name="../x.png"))
    with raises(DataError, coco_file(tmp_path), "outside of the dataset: ../x.png"):
        ObjectStore(tmp_path).open("train")


@pytest.mark.parametrize("inside", ["", "BCCD", "VOCdevkit/VOC2012"])
def test_voc_is_found_inside_its_usual_folders(tmp_path, inside):
    write_voc(tmp_path / inside, {"train": 5})
    store = ObjectStore(tmp_path)
    present = sorted({("red", "blue")[label] for image in made("train", 5) for label, *_ in image.objects})
    assert store.layout == "voc" and list(store.open("train").class_names) == present == ["blue", "red"]


def test_classes_of_voc_may_be_listed(tmp_path):
    write_voc(tmp_path, TWO)
    write(tmp_path / "classes.txt", "red\nblue\ngreen\n")
    assert ObjectStore(tmp_path).open("train").class_names == ("red", "blue", "green")


def test_a_list_of_voc_with_an_unknown_name_is_an_error(tmp_path):
    write_voc(tmp_path, TWO)
    path = tmp_path / "ImageSets/Main/train.txt"
    path.write_text("nobody\n")
    with raises(DataError, path, "lists nobody"):
        ObjectStore(tmp_path).open("train")
    write(tmp_path / "Annotations/nobody.xml", voc_text(made("train", 1)[0]))
    with raises(DataError, tmp_path / "JPEGImages", "no image nobody"):
        ObjectStore(tmp_path).open("train")


def test_yolo_needs_names_and_takes_images_without_a_file_as_empty(tmp_path):
    write_yolo(tmp_path, TWO)
    (tmp_path / "labels/train/train_0.txt").unlink()
    source = ObjectStore(tmp_path).open("train")
    assert source.class_names == ("red", "blue") and not source.image(0).instances and source.image(1).instances
    (tmp_path / "data.yaml").write_text("path: .\nnames: [a\n")  # no YAML
    with raises(DataError, tmp_path, "neither data.yaml with names nor classes.txt"):
        ObjectStore(tmp_path).open("train", ())
    write(tmp_path / "classes.txt", "a\nb\n")
    (tmp_path / "labels/train/train_1.txt").write_text("0 0.5 0.5 0.1 0.1\n")
    assert ObjectStore(tmp_path).open("train").class_names == ("a", "b")


def test_yolo_may_have_a_folder_for_each_split(tmp_path):
    write_yolo(tmp_path, TWO)
    for split in TWO:
        (tmp_path / split).mkdir()
        for kind in ("images", "labels"):
            (tmp_path / kind / split).rename(tmp_path / split / kind)
    assert len(ObjectStore(tmp_path).open("train")) == 2


def test_what_is_not_used_is_counted_by_reason(tmp_path):
    write_coco(tmp_path, TWO)
    changed(tmp_path, lambda c: c["annotations"][0].update(bbox=[1, 1, 0, 5]))
    assert ObjectStore(tmp_path).open("train").omitted == ("1 annotation whose box has a side below 1 pixel: 1",)
    write_voc(tmp_path / "BCCD", TWO)
    path = tmp_path / "BCCD/Annotations/train_1.xml"
    path.write_text(path.read_text().replace("<xmin>", "<xmin>9999", 1))
    (tmp_path / "annotations").rename(tmp_path / "other")
    omitted = ObjectStore(tmp_path).open("train").omitted
    assert omitted == ("1 annotation whose box has a side below 1 pixel: train_1.png",)


@pytest.mark.parametrize(
    "names",
    [
        "names: [red, blue]",
        "names: {0: red, 1: blue}",
        "names:\n  0: red\n  1: blue\nnc: 2",
        '{"names": ["red", "blue"]}',
    ],
)
def test_names_of_yolo(tmp_path, names):
    write_yolo(tmp_path, TWO)
    (tmp_path / "data.yaml").write_text(names)
    assert ObjectStore(tmp_path).open("train").class_names == ("red", "blue")


def test_names_of_yolo_are_text_and_a_string_is_one(tmp_path):
    write_yolo(tmp_path, {"train": 1})
    for path in (tmp_path / "labels/train").iterdir():
        path.write_text("")
    (tmp_path / "data.yaml").write_text("names: [no, yes]")
    assert ObjectStore(tmp_path).open("train").class_names == ("no", "yes")
    (tmp_path / "data.yaml").write_text("names: person")
    assert ObjectStore(tmp_path).open("train").class_names == ("person",)


@pytest.mark.parametrize("names", ["{1: red, 2: blue}", "{0: red, x: blue}", "[red, red]", "[red, [a]]", "[red, '']"])
def test_names_of_yolo_that_are_no_list_are_errors(tmp_path, names):
    write_yolo(tmp_path, TWO)
    (tmp_path / "data.yaml").write_text(f"names: {names}")
    with raises(DataError, tmp_path / "data.yaml"):
        ObjectStore(tmp_path).open("train")


@pytest.mark.parametrize("write_set", [write_yolo, write_voc])
def test_classes_are_matched_by_name_in_every_layout(tmp_path, write_set):
    write_set(tmp_path, {"val": 4})
    write(tmp_path / "classes.txt", "red\nblue\n")
    source = ObjectStore(tmp_path).open("val", ("blue", "green", "red"))
    expected = [{0: 2, 1: 0}[label] for image in made("val", 4) for label, *_ in image.objects]
    assert [one.label for i in range(4) for one in source.image(i).instances] == expected
    assert source.class_names == ("blue", "green", "red") and source.category_ids == (1, 2, 3)
    with raises(DataError, source.origin, "class 'blue'"):
        ObjectStore(tmp_path).open("val", ("red", "green"))


def test_shares_of_yolo_are_of_the_upright_image(tmp_path):
    write_yolo(tmp_path, {"train": 1})
    path, (height, width) = tmp_path / "images/train/train_0.png", made("train", 1)[0].pixels.shape[:2]
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    Image.open(path).save(path, exif=exif)
    image = ObjectStore(tmp_path).open("train").image(0)
    assert image.size == (width, height) != (height, width)
    _, x1, y1, x2, y2 = made("train", 1)[0].objects[0]
    assert image.instances[0].box == pytest.approx(
        (x1 / width * height, y1 / height * width, x2 / width * height, y2 / height * width)
    )


def test_files_below_and_replaced_images_are_noticed(tmp_path):
    write_yolo(tmp_path, TWO)
    below = tmp_path / "images/train/more"
    save(below / "a.png", np.zeros((40, 50, 3), np.uint8))
    assert len(ObjectStore(tmp_path).open("train")) == 3
    save(below / "b.png", np.zeros((40, 50, 3), np.uint8))
    assert len(ObjectStore(tmp_path).open("train")) == 4
    save(below / "b.png", np.zeros((60, 70, 3), np.uint8))
    source = ObjectStore(tmp_path).open("train")
    assert {source.image(i).file: source.image(i).size for i in range(4)}["more/b.png"] == (60, 70)


def test_text_that_belongs_to_no_image_is_no_yolo(tmp_path):
    save(tmp_path / "images/train/a.png", np.zeros((4, 4, 3), np.uint8))
    write(tmp_path / "labels/train/readme.txt", "hello")
    with raises(DataError, tmp_path, "no annotations"):
        ObjectStore(tmp_path)


@pytest.mark.parametrize("name", ["sub/train_0.png", "train2017/train_0.png", "images/deep/train_0.png"])
def test_images_of_coco_are_where_their_names_lead(tmp_path, name):
    write_coco(tmp_path, {"train": 1})
    folder = {"sub": "train2017", "train2017": "", "images": ""}[name.split("/")[0]]
    path = tmp_path / folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / "train2017/train_0.png").rename(path)
    changed(tmp_path, lambda c: c["images"][0].update(file_name=name))
    assert ObjectStore(tmp_path).open("train")[0].name == str(path)


def test_the_latest_of_several_years_is_read_and_a_pipe_is_not(tmp_path):
    write_coco(tmp_path, {"train": 1})
    old = tmp_path / "annotations/instances_train2014.json"
    old.write_text("{}")
    os.mkfifo(tmp_path / "annotations/instances_train2099.json")
    assert ObjectStore(tmp_path).open("train").origin == coco_file(tmp_path)


def test_lists_of_voc_may_have_names_with_spaces_and_columns(tmp_path):
    write_voc(tmp_path, {"train": 2})
    for folder, ending in (("Annotations", "xml"), ("JPEGImages", "png")):
        (tmp_path / folder / f"train_0.{ending}").rename(tmp_path / folder / f"a photo.{ending}")
    (tmp_path / "ImageSets/Main/train.txt").write_bytes(b"a photo\ntrain_1  -1\n\n")
    assert len(ObjectStore(tmp_path).open("train")) == 2
    (tmp_path / "ImageSets/Main/train.txt").write_bytes(b"\xff\xfe\n")
    with raises(DataError, tmp_path / "ImageSets/Main/train.txt"):
        ObjectStore(tmp_path).open("train")


def test_heic_images_of_yolo_have_a_size(tmp_path):
    pytest.importorskip("pi_heif", reason="decodes HEIC")
    write_yolo(tmp_path, {"train": 1})
    shutil.copy(ROOT / "tests/data/photo.heic", tmp_path / "images/train/phone.HEIC")
    source = ObjectStore(tmp_path).open("train")
    sizes = {source.image(i).file: source.image(i).size for i in range(2)}
    path = tmp_path / "images/train/phone.HEIC"
    assert sizes["phone.HEIC"] == decode(path.read_bytes(), str(path), upright=True).size[::-1]
    path.write_bytes(b"no image")
    with raises(DataError, path, "not a readable image"):
        ObjectStore(tmp_path).open("train")
