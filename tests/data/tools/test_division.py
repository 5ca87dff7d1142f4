"""A dataset without splits is divided: stratified, with related images in the same split, the same in every run."""

import shutil
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from data.sources.base import IndexedSource
from data.sources.folders import FolderPool
from data.sources.index import Index
from data.tools.division import DividedStore, DivisionOptions, divide, format_splits, read_splits, related
from tests.tools.errors import raises
from utils.errors import ConfigError, DataError


@pytest.mark.parametrize("fraction", [0.1, 0.2, 0.5])
def test_every_class_is_held_out_in_proportion(fraction):
    sizes = (100, 41, 10, 3, 2, 1)
    labels = [(label,) for label, size in enumerate(sizes) for _ in range(size)]
    parts = divide(labels, range(len(labels)), [1 - fraction, fraction], seed=0)
    for label, size in enumerate(sizes):
        held_out = sum(part for part, own in zip(parts, labels, strict=True) if own == (label,))
        assert abs(held_out - fraction * size) <= 1
        assert (held_out > 0) == (size > 1) and held_out < size
    assert (parts == divide(labels, range(len(labels)), [1 - fraction, fraction], seed=0)).all()
    assert (parts != divide(labels, range(len(labels)), [1 - fraction, fraction], seed=1)).any()


def test_folds_are_of_equal_size_in_every_class():
    labels = [(label,) for label in range(4) for _ in range(25)]
    folds = divide(labels, range(100), [0.2] * 5, seed=3)
    counts = Counter(zip(folds.tolist(), labels, strict=True))
    assert len(counts) == 20 and set(counts.values()) == {5}


def test_groups_stay_together_and_several_labels_are_stratified():
    draw = np.random.default_rng(0)
    groups = [i // 3 for i in range(300)]
    labels = [tuple(np.flatnonzero(draw.random(6) < 0.3)) for _ in range(300)]
    parts = divide(labels, groups, [0.75, 0.25], seed=0)
    for i in range(0, 300, 3):
        assert len(set(parts[i : i + 3])) == 1
    for label in range(6):
        has = [label in own for own in labels]
        assert sum(parts[has]) / sum(has) == pytest.approx(0.25, abs=0.06)
    assert sum(parts) / 300 == pytest.approx(0.25, abs=0.03)


def test_a_class_with_as_many_groups_as_parts_is_in_every_part():
    """Also where one group is far larger than the share held out."""
    labels, groups = [(0,)] * 5 + [(1,)] * 40, [0, 0, 0, 1, 1, *range(2, 42)]
    for fraction in (0.1, 0.2, 0.5):
        parts = divide(labels, groups, [1 - fraction, fraction], seed=0)
        assert set(parts[:5]) == {0, 1} and len(set(parts[:3])) == 1


def test_an_image_is_held_out_in_any_order_of_the_names():
    labels, names = [(i % 3,) for i in range(60)], [f"{i * 7 % 60}.jpg" for i in range(60)]
    parts = divide(labels, range(60), [0.8, 0.2], 0, names)
    found = {name for name, part in zip(names, parts, strict=True) if part}
    again = divide(labels[::-1], range(60), [0.8, 0.2], 0, names[::-1])
    assert found == {name for name, part in zip(names[::-1], again, strict=True) if part}


def write(folder, counts, size=24):
    """Writes class folders of images that differ."""
    draw = np.random.default_rng(len(counts))
    for name, count in counts.items():
        (folder / name).mkdir(parents=True)
        for i in range(count):
            blocks = draw.integers(0, 256, (6, 6, 3), dtype=np.uint8)
            Image.fromarray(blocks).resize((size, size)).save(folder / name / f"p{i % 4}_{i}.png")
    return folder


def split_of(store, split):
    source = store.open(split)
    return [source.key(i) for i in range(len(source))]


def test_a_folder_is_divided_once_and_for_all(tmp_path, caplog):
    caplog.set_level("INFO")
    folder = write(tmp_path / "photos", {"cat": 20, "dog": 10, "emu": 5})
    store = DividedStore(FolderPool(folder), DivisionOptions())
    train, val = (store.open(split) for split in ("train", "val"))
    assert (train.counts(), val.counts()) == ([16, 8, 4], [4, 2, 1]) and train.class_names == ("cat", "dog", "emu")
    assert not set(split_of(store, "train")) & set(split_of(store, "val"))
    assert train[0].data == (folder / train.key(0)).read_bytes() and train[0].name == str(folder / train.key(0))
    assert "7 of 35 images are held out" in caplog.text
    again = DividedStore(FolderPool(folder), DivisionOptions())
    assert split_of(again, "val") == split_of(store, "val") and again.open("val").fingerprint() == val.fingerprint()
    other = DividedStore(FolderPool(folder), DivisionOptions(seed=1))
    assert split_of(other, "val") != split_of(store, "val")
    # a list of an earlier division decides, also when files were added; evaluations use what was held out
    (tmp_path / "split.csv").write_text(format_splits(store.splits))
    known = read_splits(tmp_path / "split.csv")
    assert known == store.splits
    shutil.copy(folder / "cat/p0_0.png", folder / "cat/new.png")
    changed = DividedStore(FolderPool(folder), DivisionOptions(seed=1, known=known))
    assert set(split_of(store, "val")) <= set(split_of(changed, "val")) and "1 image was added" in caplog.text
    held_out = dict.fromkeys(split_of(store, "val"), "val")
    evaluated = DividedStore(FolderPool(folder), DivisionOptions(known=held_out, evaluates=True))
    assert split_of(evaluated, "val") == split_of(store, "val")
    assert "evaluated: 7 of 7 images held out in training; the other 29 are not" in caplog.text
    # another dataset in which some files have the same names
    other = write(tmp_path / "other", {"cat": 6, "dog": 2, "emu": 1})
    evaluated = DividedStore(FolderPool(other), DivisionOptions(known=held_out, evaluates=True))
    assert len(evaluated.open("val")) == 9 and "it is not the dataset that was divided" in caplog.text
    whole = DividedStore(FolderPool(folder), DivisionOptions(evaluates=True))
    assert len(whole.open("val")) == 36 and "the weights list no held-out images: all 36" in caplog.text
    everything = DividedStore(FolderPool(folder), DivisionOptions(fraction=0))
    assert len(everything.open("train")) == 36
    with raises(DataError, "DATA.SPLIT"):
        everything.open("val")


def test_added_images_join_their_group(tmp_path, caplog):
    """A new photograph of a known patient must not be on the other side of the division."""
    folder, draw = tmp_path / "photos", np.random.default_rng(0)

    def photograph(patient, number):
        (folder / f"c{patient % 2}").mkdir(parents=True, exist_ok=True)
        blocks = draw.integers(0, 256, (6, 6, 3), dtype=np.uint8)
        Image.fromarray(blocks).resize((24, 24)).save(folder / f"c{patient % 2}" / f"{patient:02}_{number}.png")

    for patient in range(20):
        for number in range(3):
            photograph(patient, number)
    options = DivisionOptions(group_by="prefix:_")
    first = DividedStore(FolderPool(folder), options)
    held_out = {name.split("/")[1][:2] for name in split_of(first, "val")}
    for patient in range(24):
        photograph(patient, 3)  # of 20 known patients and 4 new ones
    grown = DividedStore(FolderPool(folder), replace(options, known=first.splits))
    sides = {split: {name.split("/")[1][:2] for name in split_of(grown, split)} for split in ("train", "val")}
    assert not sides["train"] & sides["val"] and sides["val"] & {f"{i:02}" for i in range(20)} == held_out
    assert len(sides["train"] | sides["val"]) == 24 and "24 images were added" in caplog.text


@pytest.mark.parametrize("text", ["path,split\na.jpg\n", "a,b\n", "path,split\na.jpg,test\n", '"', ""])
def test_a_damaged_list_is_refused(tmp_path, text):
    (tmp_path / "split.csv").write_text(text)
    with raises(DataError, tmp_path / "split.csv"):
        read_splits(tmp_path / "split.csv")


def test_images_are_grouped_by_name(tmp_path):
    source = FolderPool(write(tmp_path / "photos", {"cat": 8, "dog": 4})).open_whole()
    names = [source.key(i) for i in range(12)]
    for rule in ("prefix:_", r"regex:^(p\d)"):
        groups = related(source, rule, duplicates=False)
        assert len(set(groups)) == 4
        assert all(
            (names[i].split("/")[1][:2] == names[j].split("/")[1][:2]) == (groups[i] == groups[j])
            for i in range(12)
            for j in range(12)
        )
    for rule, word in (("prefix:%", "separate group"), ("column:patient", "no column")):
        with raises(ConfigError, "DATA.GROUP_BY", word):
            related(source, rule, duplicates=False)
    patients = IndexedSource(Index.build(list("abcd"), [0, 0, 1, 1], group=[5, 6, 6, 5]), "xy", None)
    assert related(patients, "column:patient", duplicates=False) == [0, 1, 1, 0]
