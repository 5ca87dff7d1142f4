"""Tar shards: class folders or WebDataset's pairs, read by offset; every damage is named with its member."""

import io
import os
import shutil
import subprocess
import tarfile

import pytest

from data.sources.tar import TarStore
from tests.data.sources.storages import files, write_shard, write_tars
from tests.tools.builders import labels_of
from tests.tools.errors import raises
from utils.errors import DataError


@pytest.fixture
def image(photos):
    return photos / "train/class_0/photo_0.jpg"


@pytest.mark.parametrize("below", [True, False])
def test_class_folders_give_the_labels(photos, tmp_path, below):
    write_tars(photos, tmp_path, below)
    store = TarStore(tmp_path)
    source = store.open("train")
    assert store.has("val") and not store.has("test") and store.class_names("val") == ["class_0", "class_1", "class_2"]
    assert [source.name(i) for i in range(36)] == [f"{tmp_path}@/{name}" for name, _ in files(photos, "train")]
    assert labels_of(source) == [label for _, label in files(photos, "train")]
    assert labels_of(store.open("val", ["x", "class_2", "class_1", "class_0"])) == [1] * 5 + [2] * 5 + [3] * 5


def test_fault_43_hidden_folders_in_a_tar_are_passed_over(photos, tmp_path, image):
    write_tars(photos, tmp_path)
    with tarfile.open(tmp_path / "train.tar", "a") as archive:
        archive.add(image, arcname="./train/.ipynb_checkpoints/x.jpg")
    source = TarStore(tmp_path).open("train")
    assert len(source) == 36 and source.class_names == ("class_0", "class_1", "class_2")


def test_keys_of_webdataset_may_repeat_in_other_shards(photos, tmp_path, image):
    other = photos / "train/class_1/photo_3.jpg"
    write_shard(tmp_path / "train-000.tar", [(image, "00000", "2\n"), (image, "00001", "0")])
    write_shard(tmp_path / "train-001.tar", [(other, "00000", "1")])
    source = TarStore(tmp_path).open("train")
    assert source.class_names == ("0", "1", "2") and labels_of(source) == [0, 1, 2]
    assert source.name(1) == f"{tmp_path}@/train-001.tar/00000.jpg" and source[1].data == other.read_bytes()
    assert TarStore(tmp_path).open("train", None, 10).class_names[9] == "9"
    assert TarStore(tmp_path).open("train", ["a", "b", "c"]).class_names == ("a", "b", "c")


@pytest.mark.parametrize(
    ("label", "classes", "reason"),
    [
        (None, 3, "no label"),
        (None, 0, "no label"),
        ("3", 3, "0 to 2"),
        ("-1", 3, "negative"),
        ("100000000", 0, "100000000"),
    ],
)
def test_fault_45_an_image_of_webdataset_needs_a_label_in_range(tmp_path, image, label, classes, reason):
    write_shard(tmp_path / "train.tar", [(image, "a", "0"), (image, "b", label)])
    with raises(DataError, f"{tmp_path}/train.tar@/b.jpg", reason, ".cls"):
        TarStore(tmp_path).open("train", None, classes)


@pytest.mark.parametrize("label", ["dog", "", "1.5", "1" * 65])
def test_a_label_that_is_no_number_is_refused(tmp_path, image, label):
    write_shard(tmp_path / "train.tar", [(image, "a", label)])
    with raises(DataError, f"{tmp_path}/train.tar@/a.cls", label[:64]):
        TarStore(tmp_path).open("train")


def test_the_key_of_a_sample_ends_at_the_first_dot(tmp_path, image):
    def write(*names):
        with tarfile.open(tmp_path / "train.tar", "w") as archive:
            for name in names:
                archive.add(image, arcname=name)
            for name, label in (("d.1/a.cls", b"1"), ("d.1/b.v1.cls", b"0"), ("d.1/b.v2.cls", b"2")):
                info = tarfile.TarInfo(name)
                info.size = 1
                archive.addfile(info, io.BytesIO(label))
        return TarStore(tmp_path).open("train")

    source = write("d.1/a.input.png", "d.1/b.v1.jpg", "d.1/b.v2.jpg")
    assert labels_of(source) == [0, 1, 2] and source.name(1).endswith("/d.1/a.input.png")
    with raises(DataError, f"{tmp_path}/train.tar@/d.1/a.mask.png", "d.1/a"):
        write("d.1/a.jpg", "d.1/a.mask.png")


def test_links_in_a_tar_are_followed(photos, tmp_path):
    folder = tmp_path / "train"
    (folder / "a").mkdir(parents=True)
    (folder / ".store").mkdir()
    shutil.copy(photos / "train/class_0/photo_0.jpg", folder / "a/0.jpg")
    shutil.copy(photos / "train/class_0/photo_1.jpg", folder / ".store/blob")
    os.link(folder / "a/0.jpg", folder / "a/1.jpg")
    (folder / "b").mkdir()
    (folder / "b/2.jpg").symlink_to("../a/1.jpg")
    (folder / "b/3.jpg").symlink_to("../.store/blob")
    subprocess.run(["tar", "cf", "train.tar", "train"], cwd=tmp_path, check=True)
    source = TarStore(tmp_path).open("train")
    assert [source.name(i).partition("@/")[2] for i in range(4)] == ["a/0.jpg", "a/1.jpg", "b/2.jpg", "b/3.jpg"]
    assert [source[i].data for i in range(4)] == [(folder / f"{'aabb'[i]}/{i}.jpg").read_bytes() for i in range(4)]


@pytest.mark.parametrize("target", ["gone.jpg", "/etc/passwd", "0.jpg"])
def test_a_link_that_leads_nowhere_is_refused(tmp_path, target):
    (tmp_path / "a").mkdir()
    (tmp_path / "a/0.jpg").symlink_to(target)
    subprocess.run(["tar", "cf", "train.tar", "a"], cwd=tmp_path, check=True)
    with raises(DataError, f"{tmp_path}/train.tar@/a/0.jpg", target, "--dereference"):
        TarStore(tmp_path).open("train")


def test_labels_of_webdataset_may_be_links(tmp_path, image):
    shutil.copy(image, tmp_path / "a.jpg")
    shutil.copy(image, tmp_path / "b.jpg")
    (tmp_path / "a.cls").write_text("1")
    os.link(tmp_path / "a.cls", tmp_path / "b.cls")
    subprocess.run("tar cf train.tar a.jpg a.cls b.jpg b.cls".split(), cwd=tmp_path, check=True)
    assert labels_of(TarStore(tmp_path).open("train")) == [1, 1]


@pytest.mark.parametrize("form", ["oldgnu", "posix --sparse-version=0.0", "posix --sparse-version=1.0"])
def test_sparse_members_are_read_with_their_holes(tmp_path, form):
    names = [f"{'a' * 120}/{i}.bmp" for i in range(3)]  # long names have a header of their own
    for i, name in enumerate(names):
        (tmp_path / "train" / name).parent.mkdir(parents=True, exist_ok=True)
        with open(tmp_path / "train" / name, "wb") as file:
            file.seek(50_000 * i)
            file.write(b"pixels")
            file.truncate(200_000)
    command = ["tar", "-S", "--hole-detection=raw", *f"--format={form}".split(), "-cf", "train.tar", "train"]
    subprocess.run(command, cwd=tmp_path, check=True)
    assert (tmp_path / "train.tar").stat().st_size < 50_000
    source = TarStore(tmp_path).open("train")
    assert [source[i].data for i in range(3)] == [(tmp_path / "train" / name).read_bytes() for name in names]
    os.truncate(tmp_path / "train.tar", 1500)
    with raises(DataError, f"{tmp_path}@/{names[2]}", "corrupt"):
        _ = source[2]


def test_a_sparse_member_too_large_for_an_image_is_not_read(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a/0.jpg").touch()
    os.truncate(tmp_path / "a/0.jpg", 10**12)
    subprocess.run("tar -S -cf train.tar a".split(), cwd=tmp_path, check=True)
    with raises(DataError, f"{tmp_path}@/a/0.jpg", "1,000,000,000,000"):
        _ = TarStore(tmp_path).open("train")[0]


def test_fault_46_paths_out_of_the_root_are_refused_in_a_tar(tmp_path):
    with tarfile.open(tmp_path / "train.tar", "w") as archive:
        info = tarfile.TarInfo("../x.jpg")
        info.size = 1
        archive.addfile(info, io.BytesIO(b"x"))
    with raises(DataError, f"{tmp_path}/train.tar@/../x.jpg", "'../x.jpg'"):
        TarStore(tmp_path).open("train")


def test_fault_47_compressed_and_truncated_tars_are_refused(photos, tmp_path):
    write_tars(photos, tmp_path)
    source = TarStore(tmp_path).open("train")
    os.truncate(tmp_path / "train.tar", 1000)
    with raises(DataError, f"{tmp_path}@/class_0/photo_0.jpg", "truncated"):
        _ = source[0]
    with tarfile.open(tmp_path / "val.tar", "w:gz") as archive:
        archive.add(photos / "val", arcname="val")
    with raises(DataError, tmp_path / "val.tar", "uncompressed"):
        TarStore(tmp_path).open("val")


def test_a_new_shard_is_noticed(tmp_path, image):
    write_shard(tmp_path / "train-0.tar", [(image, "a", "0")])
    assert len(TarStore(tmp_path).open("train")) == 1
    shutil.copy(tmp_path / "train-0.tar", tmp_path / "train-1.tar")
    assert len(TarStore(tmp_path).open("train")) == 2
