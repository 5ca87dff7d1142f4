"""Names of files and folders: one rule in every storage."""

import shutil
import subprocess
import zipfile

import pytest

from data.sources.files import find_images
from data.sources.folders import FolderStore
from data.sources.names import is_image, is_imagenet, is_left_out, nested_classes
from data.sources.tar import TarStore
from data.sources.unlabelled import UnlabelledStore
from data.sources.zip import ZipStore

LEFT_OUT = [
    *("@eaDir/0.png/SYNOFILE_THUMB_M.jpg", "a/@eaDir/0.jpg", "a/deep/.ipynb_checkpoints/0-checkpoint.png"),
    *("__MACOSX/a/._0.png", "__MACOSX/a/0.png", "a/._0.png", ".Trashes/0.png", "b/#recycle/0.png", "lost+found/0.png"),
    *("Thumbs.db", "a/Thumbs.db", "a/.DS_Store", "b/desktop.ini", "$RECYCLE.BIN/0.jpg"),
]


@pytest.fixture
def tree(photos, tmp_path):
    """Classes a and b with an image each, among what systems write."""
    root = tmp_path / "tree"
    for name in ("a/0.png", "b/deep/1.png", *LEFT_OUT):
        (root / "train" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(photos / "train/class_0/photo_0.jpg", root / "train" / name)
    return root


def as_folder(root):
    return FolderStore(root).open("train")


def as_unlabelled(root):
    return UnlabelledStore(root).open("train")


def as_zip(root):
    with zipfile.ZipFile(root / "train.zip", "w") as archive:
        for path in sorted((root / "train").rglob("*")):
            archive.write(path, path.relative_to(root))
    return ZipStore(root).open("train")


def as_tar(root):
    subprocess.run(["tar", "cf", "train.tar", "train"], cwd=root, check=True)
    return TarStore(root).open("train")


@pytest.mark.parametrize("opened", [as_folder, as_unlabelled, as_zip, as_tar])
def test_fault_43_every_storage_leaves_out_the_same_names(tree, opened, caplog):
    source = opened(tree)
    found = [source.name(i).replace("@/", "/train/").partition("/train/")[2] for i in range(len(source))]
    assert found == ["a/0.png", "b/deep/1.png"] and source.class_names in ((), ("a", "b"))
    assert caplog.text == ""  # none of them is reported as an ignored file either


def test_predictions_find_the_images_that_training_finds(tree, tmp_path):
    (tree / "train/c").symlink_to(shutil.copytree(tree / "train/b", tmp_path / "elsewhere"))
    expected = [tree / "train" / name for name in ("a/0.png", "b/deep/1.png", "c/deep/1.png")]
    assert find_images([str(tree / "train")], tree).paths == expected
    assert find_images([f"{tree}/train/**/*.png"], tree).paths == expected
    assert find_images([f"{tree}/train/*/0.png"], tree).paths == expected[:1]
    named = tree / "train/@eaDir/0.png"
    assert find_images([f"{named}/*.jpg"], tree).paths == [named / "SYNOFILE_THUMB_M.jpg"]  # named on purpose


def test_names_of_images():
    assert [name for name in ("x.jpeg", "x.TIF", "y/.x.jpg", "x.jpg.txt", "x") if is_image(name)] == ["x.jpeg", "x.TIF"]
    assert [name for name in ("./a/0.png", "../a/0.png", "a/...b/0.png", "eaDir") if is_left_out(name)] == [
        "a/...b/0.png"
    ]


@pytest.mark.parametrize(
    ("names", "inner"),
    [
        (["flowers/a/0.png", "flowers/b/deep/0.png", "flowers/a/1.png"], ["a", "b"]),
        (["flowers/a/0.png", "flowers/b/0.png", "flowers/1.png"], []),  # images of the class itself
        (["n01/images/0.png", "n02/images/0.png", "n02/more/1.png"], []),  # several classes
        (["n01/images/0.png"], []),
        (["0.png"], []),
        ([], []),
    ],
)
def test_the_subfolders_of_an_only_class_may_be_the_classes(names, inner):
    assert nested_classes(names) == inner


@pytest.mark.parametrize("opened", [as_folder, as_zip, as_tar])
def test_classes_one_level_too_deep_are_warned_of(tree, opened, caplog):
    (tree / "train/flowers").mkdir()
    for name in "ab":
        (tree / "train" / name).rename(tree / "train/flowers" / name)
    assert opened(tree).class_names == ("flowers",)
    assert "subfolders that may be the classes" in caplog.text and caplog.text.rstrip().endswith(": a, b")


def test_classes_of_imagenet_are_recognised():
    assert is_imagenet(["n01440764", "n01443537"]) and is_imagenet(["n01440764", "7"])
    assert is_imagenet([str(i) for i in range(1000)]) and is_imagenet([f"class {i}" for i in range(21841)])
    assert not is_imagenet([]) and not is_imagenet(["tench", "n0144076x", "nature"])
