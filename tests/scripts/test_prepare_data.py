"""prepare_data.py finds planted faults, packs without loss, and leaves nothing half done."""

import shutil
import zipfile

import numpy as np
import pytest
from PIL import Image
from timm.data import ImageNetInfo

from data.pipeline.decoding import decode
from scripts.prepare_data import main
from tests.data.pipeline.test_decoding import malformed_exif
from tests.tools.builders import open_folder, write_photos

SYNSETS = ImageNetInfo("imagenet-1k").label_names()


def found(capsys, folder):
    """Returns the exit code, the findings, and all output."""
    code = main(["check", str(folder), "--workers", "2"])
    out = capsys.readouterr().out
    return code, [line.removeprefix("found: ") for line in out.splitlines() if line.startswith("found: ")], out


def test_a_clean_folder_has_no_findings(photos, capsys):
    code, findings, out = found(capsys, photos)
    assert (code, findings) == (0, [])
    assert "train: 36 images, 3 classes, 12 to 12 in a class" in out and "51 distinct images" in out


def test_names_are_escaped_where_they_are_printed(own_photos, capsys, tmp_path):
    folder = own_photos.rename(own_photos.parent / "a\x1b]0;b\x07")
    (folder / "train/class_1").rename(folder / "train/cla\x1b[31mss")
    main(["check", str(folder)])
    main(["zip", str(folder), str(tmp_path / "z\x1b[2J")])
    captured = capsys.readouterr()
    assert not {"\x1b", "\x07"} & {*captured.out, *captured.err} and "\\x1b[31mss" in captured.out


@pytest.mark.seconds
def test_each_of_twelve_planted_faults_is_found(own_photos, capsys):
    """Each on a separate line, and no other."""
    train, val = own_photos / "train", own_photos / "val"
    planted = {
        "truncated": train / "class_0/photo_0.jpg",
        "empty file": train / "class_0/photo_1.jpg",
        "unknown format": train / "class_0/photo_2.jpg",
        "exceeds limit": train / "class_1/bomb.png",
        "same image in train and val": val / "class_2/copied.jpg",
        "same image in two classes": train / "class_2/from_1.jpg",
        "no images for class class_9": train / "class_9",
        "nearly identical class names": train / "Class_1",
        "without an image extension": train / "class_2/notes.txt",
        "broken links": train / "class_2/gone.jpg",
        "outside the class folders": val / "lost.jpg",
        "in val but not in train": val / "class_7",
    }
    whole = planted["truncated"].read_bytes()
    planted["truncated"].write_bytes(whole[:-600])
    planted["empty file"].write_bytes(b"")
    planted["unknown format"].write_bytes(b"this is text")
    Image.new("1", (20_000, 20_000)).save(planted["exceeds limit"])
    shutil.copy(train / "class_2/photo_5.jpg", planted["same image in train and val"])
    shutil.copy(train / "class_1/photo_5.jpg", planted["same image in two classes"])
    planted["no images for class class_9"].mkdir()
    planted["nearly identical class names"].mkdir()
    planted["without an image extension"].write_text("who, when")
    planted["broken links"].symlink_to(own_photos / "nowhere.jpg")
    Image.new("RGB", (8, 8), "red").save(planted["outside the class folders"])
    planted["in val but not in train"].mkdir()
    Image.new("RGB", (8, 8), "blue").save(planted["in val but not in train"] / "a.png")
    for place in (train / "Class_1", val / "Class_1"):
        place.mkdir(exist_ok=True)
        Image.new("RGB", (8, 8), "green" if "train" in str(place) else "gray").save(place / "a.png")

    code, findings, _ = found(capsys, own_photos)
    assert code == 3
    for text, path in planted.items():
        hits = [line for line in findings if text in line]
        assert hits, (text, findings)
        assert any(str(path) in line or path.name in line for line in hits), (text, hits)
    # Class_1 is in both splits; the broken link is also an image that cannot be read
    assert len(findings) == len(planted) + 2, findings


@pytest.mark.seconds
def test_numbers_that_sort_as_text_and_wrong_counts_of_imagenet(tmp_path, capsys):
    for part in ("train", "val"):
        for name in range(11):
            (tmp_path / "digits" / part / str(name)).mkdir(parents=True)
            Image.new("L", (4, 4), 10 * name + (part == "val")).save(tmp_path / "digits" / part / str(name) / "a.png")
    code, findings, _ = found(capsys, tmp_path / "digits")
    assert code == 3 and len(findings) == 2 and all("label 1 is not class 1" in line for line in findings)
    for number, synset in enumerate(SYNSETS):
        (tmp_path / "imagenet/train" / synset).mkdir(parents=True)
        pixels = np.full((2, 2, 3), (number // 256, number % 256, 0), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "imagenet/train" / synset / "a.png")
    (tmp_path / "imagenet/val").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "imagenet/val/ILSVRC2012_val_00000001.JPEG")
    code, findings, out = found(capsys, tmp_path / "imagenet")
    assert code == 3 and "ImageNet-1K has 1,281,167 images in train, this has 1,000" in findings[0]
    assert "50,000 images in val, this has 1" in findings[1] and len(findings) == 2
    assert "labels are in synset order" in out


def samples(path, **options):
    """Returns labels and bytes of all samples of both splits, and the identity of the data."""
    sources = open_folder(path, **options)
    return [[(s.label(i), s[i].data) for i in range(len(s))] for s in (sources.train, sources.val)], sources.identity()


def test_archives_contain_the_same_samples(photos, tmp_path, capsys):
    assert main(["zip", str(photos), str(tmp_path / "zips")]) == 0
    assert "36 images, read back and compared" in capsys.readouterr().out
    assert samples(photos) == samples(tmp_path / "zips", zipped=True)
    assert sorted(p.name for p in (tmp_path / "zips").iterdir()) == [
        "train.zip",
        "train_map.txt",
        "val.zip",
        "val_map.txt",
    ]
    with zipfile.ZipFile(tmp_path / "zips/train.zip") as archive:
        assert all(entry.compress_type == zipfile.ZIP_STORED for entry in archive.infolist())


def test_a_name_of_any_length_is_resized(tmp_path):
    write_photos(tmp_path / "in", classes=2, train=1, val=1)
    next((tmp_path / "in/train/class_0").iterdir()).rename(tmp_path / f"in/train/class_0/{'x' * 244}.jpg")
    assert main(["resize", str(tmp_path / "in"), str(tmp_path / "out"), "--short-side", "16"]) == 0
    assert (tmp_path / f"out/train/class_0/{'x' * 244}.jpg").is_file()


def test_a_resized_copy_is_read_like_the_original(photos, tmp_path, capsys):
    for count in (51, 0):  # the second time nothing is left to do
        assert main(["resize", str(photos), str(tmp_path / "small"), "--short-side", "48", "--workers", "2"]) == 0
        assert f"51 images, {count} of them resized" in capsys.readouterr().out
    originals = sorted(p.relative_to(photos) for p in photos.rglob("*.jpg"))
    assert sorted(p.relative_to(tmp_path / "small") for p in (tmp_path / "small").rglob("*.jpg")) == originals
    for name in originals[:3]:
        expected = Image.open(photos / name).resize((48, 48), Image.Resampling.BICUBIC)
        copy = Image.open(tmp_path / "small" / name)
        assert copy.format == "JPEG" and abs(np.asarray(copy).astype(int) - np.asarray(expected)).mean() < 3
    sources = open_folder(tmp_path / "small")
    assert (len(sources.train), len(sources.val), sources.class_names) == (36, 15, ("class_0", "class_1", "class_2"))


def test_small_images_are_copied_unchanged_and_the_orientation_is_kept(tmp_path):
    tags = Image.Exif()
    tags[0x0112] = 6
    for part in ("train", "val"):
        (tmp_path / "data" / part / "a").mkdir(parents=True)
        Image.new("RGB", (30, 20)).save(tmp_path / "data" / part / "a/small.jpg")
        Image.new("RGB", (300, 200)).save(tmp_path / "data" / part / "a/large.jpg", exif=tags)
        Image.new("RGB", (300, 200)).save(tmp_path / "data" / part / "a/large.png")
    assert main(["resize", str(tmp_path / "data"), str(tmp_path / "to"), "--short-side", "50", "--workers", "1"]) == 0
    folder = tmp_path / "to/train/a"
    assert (folder / "small.jpg").read_bytes() == (tmp_path / "data/train/a/small.jpg").read_bytes()
    large = Image.open(folder / "large.jpg")
    assert large.size == (75, 50) and large.getexif()[0x0112] == 6
    assert Image.open(folder / "large.png").format == "PNG"


def test_copies_of_every_format_can_be_read_and_have_one_setting(tmp_path, capsys):
    """TIFFs store the positions of their pixels in their metadata; malformed metadata cause no traceback."""
    folder = tmp_path / "data/train/a"
    folder.mkdir(parents=True)
    for kind, mode in (
        ("tif", "RGB"),
        ("tiff", "I;16"),
        ("png", "RGBA"),
        ("jpg", "CMYK"),
        ("bmp", "L"),
        ("webp", "RGB"),
    ):
        Image.new(mode, (90, 60)).save(folder / f"image.{kind}")
    Image.new("RGB", (90, 60)).save(folder / "odd.jpg", exif=malformed_exif(8))
    call = ["resize", str(tmp_path / "data"), str(tmp_path / "to"), "--workers", "1", "--short-side"]
    assert main([*call, "30"]) == 0 and "5 of them resized" in capsys.readouterr().out
    for file in (tmp_path / "to/train/a").iterdir():
        as_it_is = file.name in ("image.tiff", "image.jpg")  # 16 bits, CMYK
        assert decode(file.read_bytes(), str(file)).size == ((90, 60) if as_it_is else (45, 30))
    assert main([*call, "20"]) == 3 and "short side 30" in capsys.readouterr().err
    assert main([*call, "0"]) == 3 and "--short-side: must be at least 1, got 0" in capsys.readouterr().err


def test_nested_images_are_rejected_when_packing(tmp_path, capsys):
    photos = write_photos(tmp_path / "photos", classes=2, train=2, val=1)
    (photos / "train/class_0/deeper").mkdir()
    (photos / "train/class_0/photo_0.jpg").rename(photos / "train/class_0/deeper/photo_0.jpg")
    assert main(["zip", str(photos), str(tmp_path / "zips")]) == 3
    assert "deeper/photo_0.jpg" in capsys.readouterr().err and list((tmp_path / "zips").iterdir()) == []


def test_a_bad_image_ends_the_copy_and_is_named(own_photos, tmp_path, capsys):
    (own_photos / "val/class_1/photo_0.jpg").write_bytes(b"")
    assert main(["resize", str(own_photos), str(tmp_path / "to"), "--workers", "1"]) == 3
    assert "class_1/photo_0.jpg" in capsys.readouterr().err
    assert main(["resize", str(own_photos), str(own_photos)]) == 3
    err = capsys.readouterr().err
    assert err.startswith("error: ") and str(own_photos) in err


def test_flat_validation_images_are_sorted_or_left_alone(tmp_path, capsys):
    (tmp_path / "val").mkdir()
    names = ["ILSVRC2012_val_00000002.JPEG", "ILSVRC2012_val_00015416.JPEG"]
    for name in names:
        Image.new("RGB", (8, 8)).save(tmp_path / "val" / name)
    (tmp_path / "val/mine.jpg").write_bytes(b"x")
    assert main(["val-folders", str(tmp_path)]) == 3 and "mine.jpg" in capsys.readouterr().err
    assert sorted(p.name for p in (tmp_path / "val").iterdir()) == [*names, "mine.jpg"]
    (tmp_path / "val/mine.jpg").unlink()
    assert main(["val-folders", str(tmp_path)]) == 0
    for label, name in zip((970, 13), names, strict=True):
        assert (tmp_path / "val" / SYNSETS[label] / name).exists()


def test_a_sheet_shows_as_many_images_as_asked_for(tmp_path, capsys):
    photos = write_photos(tmp_path / "photos", classes=3, train=4, val=1)
    (photos / "train/class_0").rename(photos / "train" / SYNSETS[0])
    assert main(["show", str(photos), str(tmp_path / "sheet.png"), "--count", "10"]) == 0
    first = Image.open(tmp_path / "sheet.png")
    assert first.format == "PNG" and first.width > first.height > 400
    for seed, same in (("0", True), ("1", False)):
        main(["show", str(photos), str(tmp_path / "again.png"), "--count", "10", "--seed", seed])
        assert (np.asarray(Image.open(tmp_path / "again.png")) == np.asarray(first)).all() == same
    assert main(["show", str(photos), str(tmp_path / "again.png/sheet.png")]) == 7
    assert f"error: {tmp_path / 'again.png/sheet.png'}: " in capsys.readouterr().err
