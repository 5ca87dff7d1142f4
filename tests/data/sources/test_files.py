"""Images named by paths, folders, patterns and lists."""

import os
import zipfile

import pytest
from PIL import Image

from data.sources.files import FileSource, find_images
from tests.tools.errors import raises
from utils.errors import DataError


@pytest.fixture
def folder(tmp_path):
    for name in ("b.png", "a.jpg", "deep/er/c.PNG", ".hidden.png", "notes.md"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (2, 2)).save(tmp_path / name, "png")
    (tmp_path / "list.txt").write_text("b.png\n\n  deep/er/c.PNG \n")
    return tmp_path


def names(folder, *given):
    return [str(path.relative_to(folder)) for path in find_images(given, folder).paths]


def test_each_kind_of_name(folder):
    os.mkfifo(folder / "pipe.png")
    assert names(folder, str(folder)) == ["a.jpg", "b.png", "deep/er/c.PNG"]
    assert names(folder, str(folder / "b.png"), str(folder / "notes.md")) == ["b.png", "notes.md"]  # named on purpose
    assert names(folder, f"{folder}/*.png") == ["b.png"] and names(folder, f"{folder}/**/*.PNG") == ["deep/er/c.PNG"]
    assert names(folder, str(folder / "list.txt")) == ["b.png", "deep/er/c.PNG"]


def test_an_image_that_is_named_twice_comes_once(folder):
    assert names(folder, str(folder / "b.png"), str(folder)) == ["b.png", "a.jpg", "deep/er/c.PNG"]


@pytest.mark.parametrize(
    ("name", "problem"),
    [("gone.jpg", "no such file"), ("*.bmp", "no images"), ("empty", "no images"), ("empty.zip", "no images")],
)
def test_a_name_without_images_is_refused(folder, tmp_path_factory, name, problem):
    (folder / "empty").mkdir()
    zipfile.ZipFile(folder / "empty.zip", "w").close()
    copies = tmp_path_factory.mktemp("copies")
    with raises(DataError, folder / name, problem):
        find_images([str(folder / name)], copies / "first")
    found = find_images([str(folder / name), str(folder / "b.png")], copies / "second")  # the others are found
    assert found.paths == [folder / "b.png"] and [error.subject for error in found.errors] == [str(folder / name)]


@pytest.mark.parametrize("name", ["x" * 300, "a\0b"])
def test_an_impossible_name_is_refused(name, tmp_path):
    with raises(DataError, name):
        find_images([name], tmp_path)


def test_a_text_that_is_no_list_is_refused(folder):
    (folder / "README.txt").write_text("\n# Title\n\nText\n")
    with raises(DataError, folder / "README.txt", "# Title"):
        find_images([str(folder / "README.txt")], folder)


def test_a_source_reads_and_names_them(folder):
    source = FileSource([folder / "b.png", folder / "gone.png"])
    assert len(source) == 2 and source[0].target is None
    assert source[0].data == (folder / "b.png").read_bytes() and source.name(0) == str(folder / "b.png")
    with raises(DataError, folder / "gone.png"):
        _ = source[1]
    assert FileSource([folder / "b.png"], {folder / "b.png": "-"})[0].name == "-"
    assert source.fingerprint() != FileSource([folder / "b.png"]).fingerprint()
