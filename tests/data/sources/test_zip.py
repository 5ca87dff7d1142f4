"""Zip archives: members read by offset, and every damage named with its archive and member."""

import stat
import zipfile

import pytest

from data.sources.zip import ZipStore
from tests.data.sources.storages import ESCAPING, SPLITS, files, write_lists, write_zips
from tests.tools.builders import labels_of, open_folder
from tests.tools.errors import raises
from tests.tools.memory import memory_bounded
from utils.errors import DataError


def test_a_map_decides_which_members_are_samples(photos, tmp_path):
    write_zips(photos, tmp_path)
    (tmp_path / "train_map.txt").write_text("class_1/photo_2.jpg\t1\nclass_0/photo_7.jpg\t0\n")
    source = ZipStore(tmp_path).open("train")
    assert source.class_names == ("class_0", "class_1") and labels_of(source) == [0, 1]
    assert source.name(1) == f"{tmp_path}/train.zip@/class_1/photo_2.jpg"
    assert source[1].data == (photos / "train/class_1/photo_2.jpg").read_bytes()


def test_the_splits_own_folder_in_the_archive_is_optional(photos, tmp_path):
    names = []
    for below in (True, False):
        target = tmp_path / str(below)
        target.mkdir()
        write_zips(photos, target, below=below)
        store = ZipStore(target)
        assert store.has("train") and not store.has("test") and store.class_names("val")[0] == "class_0"
        source = store.open("train")
        names.append([source.name(i).partition("@/")[2] for i in range(len(source))])
    assert names[0] == names[1] == [name for name, _ in files(photos, "train")]


@pytest.mark.parametrize("below", [True, False])
def test_a_map_may_name_the_splits_own_folder(photos, tmp_path, below):
    write_zips(photos, tmp_path, below=below)
    write_lists(photos, tmp_path, below=True)
    source = ZipStore(tmp_path).open("train")
    assert [source.name(i).partition("@/")[2] for i in range(36)] == [name for name, _ in files(photos, "train")]


def test_fault_43_hidden_folders_in_an_archive_are_passed_over(photos, tmp_path):
    write_zips(photos, tmp_path)
    with zipfile.ZipFile(tmp_path / "train.zip", "a") as archive:
        for name in (".ipynb_checkpoints/x.jpg", "class_0/.thumbnails/x.jpg"):
            archive.write(photos / "train/class_0/photo_0.jpg", f"train/{name}")
    source = ZipStore(tmp_path).open("train")
    assert len(source) == 36 and source.class_names == ("class_0", "class_1", "class_2")


@pytest.mark.parametrize("name", ESCAPING)
def test_fault_46_paths_out_of_the_root_are_refused_in_a_map(photos, tmp_path, name):
    write_zips(photos, tmp_path)
    (tmp_path / "train_map.txt").write_text(f"{name}\t0\n")
    with raises(DataError, f"{tmp_path}/train_map.txt:1", repr(name)):
        ZipStore(tmp_path).open("train")


@pytest.mark.parametrize("name", ["../x.jpg", "/x.jpg"])
def test_fault_46_paths_out_of_the_root_are_refused_in_an_archive(tmp_path, name):
    with zipfile.ZipFile(tmp_path / "train.zip", "w") as archive:
        archive.writestr(name, b"x")
    with raises(DataError, f"{tmp_path}/train.zip@/{name}", repr(name)):
        ZipStore(tmp_path).open("train")


def test_fault_47_corrupt_archives_are_refused(photos, tmp_path):
    write_zips(photos, tmp_path)
    archive = tmp_path / "train.zip"
    source = open_folder(tmp_path, zipped=True).train
    data = bytearray(archive.read_bytes())
    data[200] ^= 1  # in the first member
    archive.write_bytes(data)
    with raises(DataError, f"{archive}@/class_0/photo_0.jpg", "checksum"):
        _ = source[0]
    archive.write_bytes(data[:5000])
    with raises(DataError, f"{archive}@/class_2/photo_9.jpg", "no member"):
        _ = source[35]
    with raises(DataError, archive):
        open_folder(tmp_path, zipped=True)


def test_fault_47_missing_and_encrypted_members_are_refused(photos, tmp_path):
    write_zips(photos, tmp_path)
    (tmp_path / "train_map.txt").write_text("class_0/photo_0.jpg\t0\nclass_0/gone.jpg\t0\n")
    with raises(DataError, f"{tmp_path}/train.zip@/class_0/gone.jpg", 1, tmp_path / "train_map.txt"):
        ZipStore(tmp_path).open("train")
    (tmp_path / "train_map.txt").unlink()
    data = bytearray((tmp_path / "train.zip").read_bytes())
    data[data.index(b"PK\x01\x02") + 8] |= 1  # the flag of encryption, in the directory
    (tmp_path / "train.zip").write_bytes(data)
    with raises(DataError, f"{tmp_path}/train.zip@/train/class_0/photo_0.jpg", "encrypted"):
        ZipStore(tmp_path).open("train")


def test_fault_47_other_compressions_are_refused(photos, tmp_path):
    write_zips(photos, tmp_path, zipfile.ZIP_BZIP2)
    with raises(DataError, f"{tmp_path}/train.zip@/train/class_0/photo_0.jpg", 12):
        ZipStore(tmp_path).open("train")


def unpacked_to(archive, size, member=b"train/a/0.png"):
    """Changes the unpacked size of a member in the directory of an archive."""
    data = bytearray(archive.read_bytes())
    at = data.rindex(b"PK\x01\x02", 0, data.rindex(member))
    data[at + 24 : at + 28] = size.to_bytes(4, "little")
    archive.write_bytes(data)


@pytest.mark.parametrize(("declared", "reason"), [(2_500_000_000, "2,500,000,000"), (1000, "longer"), (2**28, "trunc")])
def test_fault_47_a_member_expands_to_its_size_in_the_archive_only(tmp_path, declared, reason):
    archive = tmp_path / "train.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("train/a/0.png", bytes(100_000_000))
    unpacked_to(archive, declared)
    if reason == "trunc":  # the stream itself
        data = archive.read_bytes()
        archive.write_bytes(data[:5000] + bytes(50_000) + data[55_000:])
    source = ZipStore(tmp_path).open("train")
    with memory_bounded(20), raises(DataError, f"{archive}@/a/0.png", reason if reason != "trunc" else "corrupt"):
        _ = source[0]


def test_fault_47_a_member_outside_the_archive_is_refused(photos, tmp_path):
    write_zips(photos, tmp_path)
    data = bytearray((tmp_path / "train.zip").read_bytes())
    at = data.index(b"PK\x01\x02")
    data[at + 20 : at + 24] = b"\xff\xff\xff\x7f"  # its compressed size
    (tmp_path / "train.zip").write_bytes(data)
    with raises(DataError, f"{tmp_path}/train.zip@/train/class_0/photo_0.jpg", "outside"):
        ZipStore(tmp_path).open("train")


@pytest.mark.parametrize("flaw", ["version", "extra field"])
def test_fault_47_what_zipfile_cannot_read_is_refused(photos, tmp_path, flaw):
    write_zips(photos, tmp_path)
    data = bytearray((tmp_path / "train.zip").read_bytes())
    at = data.index(b"PK\x01\x02")
    if flaw == "version":
        data[at + 6] = 200
    else:
        data[at + 30] = 200  # its length
    (tmp_path / "train.zip").write_bytes(data)
    with raises(DataError, tmp_path / "train.zip", "zip archive"):
        ZipStore(tmp_path).open("train")


def test_links_in_a_zip_are_refused(photos, tmp_path):
    with zipfile.ZipFile(tmp_path / "train.zip", "w") as archive:
        archive.write(photos / "train/class_0/photo_0.jpg", "a/0.jpg")
        link = zipfile.ZipInfo("b/1.jpg")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, "../a/0.jpg")
    with raises(DataError, f"{tmp_path}/train.zip@/b/1.jpg", "symbolic link"):
        ZipStore(tmp_path).open("train")


@pytest.mark.parametrize("form", ["./{}/{}.png", "./train/{}//{}.png", "train\\{}\\{}.png"])
def test_names_in_an_archive_are_normalised(photos, tmp_path, form):
    with zipfile.ZipFile(tmp_path / "train.zip", "w") as archive:
        for label, name in (("a", 0), ("b", 1)):
            member = zipfile.ZipInfo(form.format(label, name))
            member.create_system = 0 if "\\" in form else 3
            archive.writestr(member, (photos / f"train/class_0/photo_{name}.jpg").read_bytes())
    source = ZipStore(tmp_path).open("train")
    assert source.class_names == ("a", "b") and source.name(1) == f"{tmp_path}/train.zip@/b/1.png"
    (tmp_path / "train_map.txt").write_text("a/0.png\t1\nb/1.png\t0\n")
    source = ZipStore(tmp_path).open("train")
    assert source[0].data == (photos / "train/class_0/photo_1.jpg").read_bytes()


def test_fault_47_zip64_is_read(photos, tmp_path):
    for split in SPLITS:
        with zipfile.ZipFile(tmp_path / f"{split}.zip", "w") as archive:
            for name, _ in files(photos, split):
                with archive.open(f"{split}/{name}", "w", force_zip64=True) as member:
                    member.write((photos / split / name).read_bytes())
    source = open_folder(tmp_path, zipped=True).train
    assert source[5].data == (photos / "train" / files(photos, "train")[5][0]).read_bytes()


def test_a_changed_map_is_noticed_by_the_stored_index(photos, tmp_path):
    write_zips(photos, tmp_path)
    write_lists(photos, tmp_path)
    assert len(ZipStore(tmp_path).open("train")) == 36
    (tmp_path / "train_map.txt").write_text("class_0/photo_0.jpg\t0\n")
    assert len(ZipStore(tmp_path).open("train")) == 1
