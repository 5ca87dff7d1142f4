"""The same images in every kind of storage: same labels, same order, same pixels."""

import io
import json
import multiprocessing
import os
import shutil
import tarfile
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from data.pipeline.dataset import EvalSamples, collate
from data.pipeline.transforms import EvalTransform, EvalTransformOptions
from data.sources.folders import imagenet_synsets, validation_labels
from data.sources.zip import ZipStore
from tests.builders import open_data, open_folder, open_validation
from tests.conftest import run_program
from utils.errors import DataError

SPLITS = ("train", "val")


def files(root, split):
    """(path below the split's folder, label) of each image, in the order of labels and names."""
    classes = sorted(p.name for p in (root / split).iterdir())
    return [(f"{c}/{p.name}", label) for label, c in enumerate(classes) for p in sorted((root / split / c).iterdir())]


def write_lists(root, target, below=""):
    for split in SPLITS:
        lines = [f"{below and split + '/'}{name}\t{label}\n" for name, label in files(root, split)]
        (target / f"{split}_map.txt").write_text("".join(reversed(lines)))


def write_zips(root, target, compression=zipfile.ZIP_STORED, prefix=True):
    for split in SPLITS:
        with zipfile.ZipFile(target / f"{split}.zip", "w", compression) as archive:
            for name, _ in files(root, split):
                archive.write(root / split / name, f"{split}/{name}" if prefix else name)


def as_folder(root, target):
    return "imagenet", root, False


def as_zip(root, target):
    write_zips(root, target, zipfile.ZIP_DEFLATED)
    return "imagenet", target, True


def as_zip_with_map(root, target):
    write_zips(root, target, prefix=False)
    write_lists(root, target)
    return "imagenet", target, True


def as_list(root, target):
    for split in SPLITS:
        shutil.copytree(root / split, target / split)
    write_lists(root, target, below="split")
    return "list", target, False


def as_22k_list(root, target):
    for split in SPLITS:
        shutil.copytree(root / split, target / split)
        entries = [[f"{split}/{name}", label] for name, label in files(root, split)]
        (target / f"ILSVRC2011fall_whole_map_{split}.txt").write_text(json.dumps(entries))
    return "imagenet22K", target, False


def as_tar(root, target):
    for split in SPLITS:
        with tarfile.open(target / f"{split}.tar", "w") as archive:
            archive.add(root / split, arcname=split)
    return "tar", target, False


def as_shards(root, target):
    for split in SPLITS:
        for shard in range(2):
            with tarfile.open(target / f"{split}-{shard:03}.tar", "w") as archive:
                for i, (name, label) in enumerate(files(root, split)):
                    if (i < 6) == (shard == 0):
                        archive.add(root / split / name, arcname=f"{i:05}.jpg")
                        info = tarfile.TarInfo(f"{i:05}.cls")
                        info.size = len(str(label))
                        archive.addfile(info, io.BytesIO(str(label).encode()))
    return "tar", target, False


KINDS = [as_folder, as_zip, as_zip_with_map, as_list, as_22k_list, as_tar, as_shards]


def opened(kind, photos, tmp_path):
    dataset, path, zipped = kind(photos, tmp_path)
    return open_data(dataset, path, zipped=zipped, cache=zipped)


@pytest.mark.parametrize("kind", KINDS)
def test_every_storage_gives_the_same_samples(photos, tmp_path, kind):
    sources = opened(kind, photos, tmp_path)
    for split, source in (("train", sources.train), ("val", sources.val)):
        expected = files(photos, split)
        assert [source.label(i) for i in range(len(source))] == [label for _, label in expected]
        assert [source.read(i) for i in range(len(source))] == [(photos / split / n).read_bytes() for n, _ in expected]
        assert source.counts() == [len(expected) // 3] * 3
    if kind is not as_shards:
        assert sources.class_names == ("class_0", "class_1", "class_2")


@pytest.mark.parametrize("kind", [as_zip, as_zip_with_map])
def test_a_run_may_go_on_from_the_archive(photos, tmp_path, kind):
    folder, archive = open_folder(photos), opened(kind, photos, tmp_path)
    assert folder.identity() == archive.identity()


@pytest.mark.parametrize("method", ["fork", "spawn"])
@pytest.mark.parametrize("kind", [as_folder, as_zip, as_tar])
def test_fault_48_processes_share_a_storage_opened_before(photos, tmp_path, kind, method):
    source = opened(kind, photos, tmp_path).val
    source.read(0)  # opens the archive in this process
    samples = EvalSamples(source, EvalTransform(EvalTransformOptions(size=(32, 32))), on_bad="error")
    keys = [(epoch, i) for epoch in range(5) for i in range(len(source))]

    def load(workers):
        context = multiprocessing.get_context(method) if workers else None
        loader = DataLoader(
            samples, 4, sampler=keys, num_workers=workers, multiprocessing_context=context, collate_fn=collate
        )
        batches = list(loader)
        return torch.cat([batch.pixels.images for batch in batches]), torch.cat([batch.targets for batch in batches])

    images, labels = load(0)
    for workers in (1, 2, 4) if method == "fork" else (2,):
        others, other_labels = load(workers)
        assert torch.equal(images, others) and torch.equal(labels, other_labels)


def test_flat_validation_images_are_labelled_by_name(photos, tmp_path):
    synsets, labels = imagenet_synsets(), validation_labels()
    names = ["ILSVRC2012_val_00000002.JPEG", "ILSVRC2012_val_00015416.JPEG"]
    assert [labels[name] for name in names] == [970, 13] and len(labels) == 50_000
    (tmp_path / "val").mkdir()
    for name in names:
        shutil.copy(photos / "val/class_0/photo_0.jpg", tmp_path / "val" / name)
    val = open_validation(tmp_path)
    assert [val.label(i) for i in range(2)] == [13, 970] and val.class_names == tuple(synsets)
    for label in (13, 970):
        shutil.copytree(photos / "train/class_0", tmp_path / "train" / synsets[label])
    val = open_folder(tmp_path).val
    assert sorted(val.label(i) for i in range(2)) == [0, 1] and len(val.class_names) == 2
    shutil.copy(photos / "val/class_0/photo_0.jpg", tmp_path / "val/holiday.jpg")
    with pytest.raises(DataError, match=r"no class folders, and 1 of its images are not ImageNet's.*holiday\.jpg"):
        open_validation(tmp_path)


def test_synthetic_images_differ_and_repeat():
    sources = open_data("synthetic", "", classes=10)
    assert sources.train.read(0) == sources.train.read(0) != sources.train.read(1) != sources.val.read(1)
    image = Image.open(io.BytesIO(sources.val.read(3)))
    assert image.size == (256, 256) and np.asarray(image).std() > 60
    assert sources.val.label(13) == 3 and sum(sources.val.counts()) == len(sources.val)


LINES = {
    "crlf": b"a b/x.jpg\t0\r\nc/y.jpg\t1\r\n",
    "bom": b"\xef\xbb\xbfa b/x.jpg\t0\nc/y.jpg\t1\n",
    "blank": b"\na b/x.jpg\t0\n\n   \nc/y.jpg\t1",
    "json": b'[["a b/x.jpg", 0], ["c/y.jpg", 1]]',
}


@pytest.mark.parametrize("text", LINES.values(), ids=LINES)
def test_fault_45_odd_lists_are_read_right(photos, tmp_path, text):
    for name in ("a b/x.jpg", "c/y.jpg"):
        (tmp_path / name).parent.mkdir()
        shutil.copy(photos / "train/class_0/photo_0.jpg", tmp_path / name)
    for split in SPLITS:
        (tmp_path / f"{split}_map.txt").write_bytes(text)
    sources = open_data("list", str(tmp_path))
    assert sources.class_names == ("a b", "c") and [sources.train.label(i) for i in (0, 1)] == [0, 1]
    assert sources.train.read(0)[:2] == b"\xff\xd8"


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("a/x.jpg\t0\na/y.jpg\t7\n", r"label 7 is not in 0 to 2: .*train_map\.txt:2"),
        ("a/x.jpg\t-1\n", r"label -1 .*:1"),
        ("a/x.jpg\tdog\n", r"the line is .*dog.*:1: it must be 'path<TAB>label'"),
        ("a/x.jpg\n", r":1: it must be"),
        ("", "an empty list"),
        ('[["a.jpg"]]', r"entry 0 is \['a\.jpg'\]"),
        ("[1, 2", "not a JSON list"),
    ],
)
def test_fault_45_malformed_lists_are_refused_with_the_line(tmp_path, lines, message):
    (tmp_path / "train_map.txt").write_text(lines)
    with pytest.raises(DataError, match=message):
        open_data("list", str(tmp_path), classes=3)


@pytest.mark.parametrize("name", ["/etc/passwd.jpg", "../x.jpg", "a/../../x.jpg", "C:\\x.jpg", "a\\..\\..\\x.jpg"])
@pytest.mark.parametrize("zipped", [False, True])
def test_fault_46_paths_out_of_the_root_are_refused(photos, tmp_path, name, zipped):
    if zipped:
        write_zips(photos, tmp_path)
    (tmp_path / "train_map.txt").write_text(f"{name}\t0\n")
    with pytest.raises(DataError, match=r"leads out of the data folder: .*train_map\.txt:1"):
        open_data("imagenet" if zipped else "list", tmp_path, zipped=zipped)


def test_fault_46_a_link_out_of_the_root_is_never_opened(photos, tmp_path):
    data = tmp_path / "data"
    (data / "a").mkdir(parents=True)
    os.mkfifo(tmp_path / "trap")  # opening it would wait forever
    (data / "a/x.jpg").symlink_to("../../trap")
    for split in SPLITS:
        (data / f"{split}_map.txt").write_text("a/x.jpg\t0\n")
    source = open_data("list", str(data)).train
    with pytest.raises(DataError, match=r"a link leads out of the data folder: .*x\.jpg"):
        source.read(0)


def test_a_link_in_the_data_folder_itself_is_followed(photos, tmp_path):
    """As ImageNet-22K is usually laid out: fall11_whole is a link to another disk."""
    elsewhere, data = tmp_path / "disk", tmp_path / "data"
    shutil.copytree(photos / "train", elsewhere)
    (elsewhere / "class_0/link.jpg").symlink_to("../class_1/photo_1.jpg")
    data.mkdir()
    (data / "fall11_whole").symlink_to(elsewhere)
    entries = [["fall11_whole/class_0/photo_0.jpg", 0], ["fall11_whole/class_0/link.jpg", 0]]
    for split in SPLITS:
        (data / f"ILSVRC2011fall_whole_map_{split}.txt").write_text(json.dumps(entries))
    source = open_data("imagenet22K", str(data)).train
    assert {source.read(i) for i in range(2)} == {
        (elsewhere / name).read_bytes() for name in ("class_0/photo_0.jpg", "class_1/photo_1.jpg")
    }


def test_fault_47_damaged_archives_are_refused(photos, tmp_path):
    write_zips(photos, tmp_path)
    archive = tmp_path / "train.zip"
    source = open_folder(tmp_path, zipped=True).train
    data = bytearray(archive.read_bytes())
    data[200] ^= 1  # in the first member
    archive.write_bytes(data)
    with pytest.raises(DataError, match=r"its checksum differs\): .*train\.zip@/class_0/photo_0\.jpg"):
        source.read(0)
    archive.write_bytes(data[:5000])
    with pytest.raises(DataError, match=r"not a readable zip archive .*train\.zip"):
        open_folder(tmp_path, zipped=True)


def test_fault_47_members_that_are_missing_or_secret(photos, tmp_path):
    write_zips(photos, tmp_path)
    (tmp_path / "train_map.txt").write_text("class_0/photo_0.jpg\t0\nclass_0/gone.jpg\t0\n")
    with pytest.raises(DataError, match=r"train\.zip@/class_0/gone\.jpg"):
        ZipStore(tmp_path).open("train")
    (tmp_path / "train_map.txt").unlink()
    data = bytearray((tmp_path / "train.zip").read_bytes())
    data[data.index(b"PK\x01\x02") + 8] |= 1  # the flag of encryption, in the directory
    (tmp_path / "train.zip").write_bytes(data)
    with pytest.raises(DataError, match=r"an encrypted image: .*train\.zip@/train/class_0/photo_0\.jpg"):
        ZipStore(tmp_path).open("train")


def test_fault_47_zip64_is_read(photos, tmp_path):
    for split in SPLITS:
        with zipfile.ZipFile(tmp_path / f"{split}.zip", "w") as archive:
            for name, _ in files(photos, split):
                with archive.open(f"{split}/{name}", "w", force_zip64=True) as member:
                    member.write((photos / split / name).read_bytes())
    source = open_folder(tmp_path, zipped=True).train
    assert source.read(5) == (photos / "train/class_0" / sorted(os.listdir(photos / "train/class_0"))[5]).read_bytes()


@pytest.mark.parametrize("kind", [as_zip, as_22k_list])
def test_the_program_trains_from_archives_and_lists(photos, tmp_path, tiny_yaml, kind):
    data = tmp_path / "data"
    data.mkdir()
    dataset, path, zipped = kind(photos, data)
    more = ["--zip"] if zipped else ["--opts", "DATA.DATASET", dataset, "MODEL.NUM_CLASSES", 21841]
    done = run_program("--cfg", tiny_yaml, "--data-path", path, "--output", tmp_path, *more, processes=2)
    assert done.code == 0, done.err
    assert ("21,841 classes" in done.out) == (not zipped)


@pytest.mark.parametrize(("failures", "works"), [(2, True), (3, False)])
def test_fault_51_a_read_error_that_goes_away_is_waited_for(photos, monkeypatch, failures, works):
    import builtins
    import errno

    source = open_folder(photos).train
    monkeypatch.setattr("data.sources.base.PAUSES", (0.0, 0.0))
    real, left = builtins.open, [failures]

    def failing(path, *more, **options):
        if str(path).endswith(".jpg") and left[0]:
            left[0] -= 1
            raise OSError(errno.EIO, "Input/output error")
        return real(path, *more, **options)

    monkeypatch.setattr(builtins, "open", failing)
    if works:
        assert source.read(0)[:2] == b"\xff\xd8" and left == [0]
    else:
        with pytest.raises(DataError, match=r"Input/output error\): .*photo_0\.jpg"):
            source.read(0)
